"""Figures that compare networks: search, path of λ, range test, widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onelayer.study.figures import (
    COLOURS,
    LABELS,
    MOST_COLOURS,
    add_scale,
    colours_of,
    describe,
    new_figure,
    save,
    scale_l2,
)
from onelayer.study.plan import SHOWN, best_of_each, format_setting, setting_of
from onelayer.training.members import grouped
from onelayer.training.records import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onelayer.study.plan import Candidate

CHOSEN = "#d62728"


def plot_search(
    rows: Sequence[Mapping[str, Any]],
    candidates: Sequence[Candidate],
    chosen: Candidate,
    best: Candidate,
    output: str | Path,
    dataset: str,
) -> None:
    """Plot validation accuracy over λ: every trial, each λ's mean and standard error, the choice.

    If other arguments are searched too, each combination has a colour, and a second chart shows
    its best λ.

    Args:
        rows: rows of search.csv.
        candidates: the λ that did not diverge.
        chosen: the choice.
        best: the highest mean.
        output: PNG to write.
        dataset: name of the data.
    """
    if chosen.setting:
        firsts = best_of_each(candidates)[:SHOWN]
        figure, axes = new_figure(1, 2, (14, max(5.5, 1.5 + 0.25 * len(firsts))))
        _draw_settings(axes[0, 0], axes[0, 1], rows, candidates, firsts)
    else:
        figure, axes = new_figure(1, 1, (9, 5.5))
        _draw_stages(axes[0, 0], rows, candidates)
    axis = axes[0, 0]
    axis.plot(best.l2, 100 * best.mean, "s", ms=12, mfc="none", color="black", label="best mean")
    axis.plot(chosen.l2, 100 * chosen.mean, "*", ms=16, color=CHOSEN, label="chosen")
    scale_l2(axis, [c.l2 for c in candidates])
    _zoom(axis, candidates, best)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)  # it hides no λ
    gone = sum(bool(row["diverged"]) for row in rows)
    searched = ", ".join(["λ", *(name for name, _ in chosen.setting)])
    figure.suptitle(describe(f"search for {searched}, {len(rows)} networks", dataset, gone))
    save(figure, output)


def _draw_stages(
    axis: Axes, rows: Sequence[Mapping[str, Any]], candidates: Sequence[Candidate]
) -> None:
    """Draw every λ of a search, a colour for each stage."""
    from matplotlib import colormaps

    stages = sorted({row["stage"] for row in rows})
    for stage, shade in zip(stages, np.linspace(0, 0.85, len(stages)), strict=True):
        colour = colormaps["viridis"](shade)
        trials = [row for row in rows if row["stage"] == stage and not row["diverged"]]
        accuracies = [100 * float(row["val_accuracy"]) for row in trials]
        axis.scatter([row["l2"] for row in trials], accuracies, s=9, color=colour, alpha=0.5)
        points = [c for c in candidates if c.stage == stage]
        axis.errorbar(
            [c.l2 for c in points],
            [100 * c.mean for c in points],
            [100 * c.error for c in points],
            fmt="none", lw=1, ecolor=colour, alpha=0.3,
        )  # fmt: skip
        means = [100 * c.mean for c in points]
        axis.plot([c.l2 for c in points], means, "o", ms=4, color=colour, label=f"stage {stage}")
    axis.set_ylabel("validation accuracy (%), mean ± standard error")


def _zoom(axis: Axes, candidates: Sequence[Candidate], best: Candidate) -> None:
    """Zoom in on the better λ; a triangle at the bottom marks each that is far below."""
    means = np.array([c.mean for c in candidates])
    span = max(3 * (best.mean - np.median(means)), 4 * best.error)
    low = 100 * (best.mean - span)
    below = [c.l2 for c in candidates if 100 * c.mean < low]
    if not below:
        return
    axis.set_ylim(low, 100 * (best.mean + 1.5 * best.error))
    marks = axis.get_xaxis_transform()
    label = f"{len(below)} λ below the chart"
    axis.plot(below, [0.015] * len(below), "v", color="#777777", transform=marks, label=label)


def _draw_settings(
    axis: Axes,
    beside: Axes,
    rows: Sequence[Mapping[str, Any]],
    candidates: Sequence[Candidate],
    firsts: Sequence[Candidate],
) -> None:
    """Draw every λ, a colour for each of the best settings, and beside it their best λ.

    Args:
        axis: chart of accuracy over λ.
        beside: chart of the best λ of each setting.
        rows: rows of search.csv.
        candidates: the λ that did not diverge.
        firsts: the best λ of each setting to show, the best first.
    """
    from matplotlib import colormaps

    shades = {c.setting: colormaps["Dark2"](i) for i, c in enumerate(firsts[:MOST_COLOURS])}
    for place, first in reversed(list(enumerate(firsts))):  # the best above the others
        colour = shades.get(first.setting, "#bbbbbb")
        trials = [r for r in rows if not r["diverged"] and setting_of(r) == first.setting]
        accuracies = [100 * float(row["val_accuracy"]) for row in trials]
        axis.scatter([row["l2"] for row in trials], accuracies, s=6, color=colour, alpha=0.35)
        own = sorted((c for c in candidates if c.setting == first.setting), key=lambda c: c.l2)
        means = [100 * c.mean for c in own]
        axis.plot([c.l2 for c in own], means, "o-", ms=4, lw=0.8, color=colour)
        mean, error = 100 * first.mean, 100 * first.error
        beside.errorbar(mean, place, xerr=error, fmt="o", ms=5, capsize=3, color=colour)
    axis.set_ylabel("validation accuracy (%): networks, and means over seeds")
    axis.margins(y=0.12)  # room for the legend
    names = [f"{format_setting(c.setting)}, λ = {c.l2:.2g}" for c in firsts]
    beside.set_yticks(range(len(firsts)), names, fontsize="small")
    beside.invert_yaxis()
    beside.set_xlabel("validation accuracy (%), mean ± standard error")
    left = len({c.setting for c in candidates}) - len(firsts)
    more = f"; {left} others are not shown" if left else ""
    beside.set_title(f"the best λ of each setting{more}", fontsize="medium")
    beside.grid(alpha=0.3)


def plot_path(
    rows: Sequence[Mapping[str, Any]],
    curve: Sequence[Sequence[float]],
    chosen: float,
    gap: float,
    output: str | Path,
    dataset: str = "",
) -> None:
    """Plot a path of λ: accuracy and cost over λ, and each member's gap over iterations.

    Args:
        rows: rows of path.csv.
        curve: gaps of the members after each iteration.
        chosen: the chosen λ.
        gap: the gap that was asked for.
        output: PNG to write.
        dataset: name of the data.
    """
    figure, axes = new_figure(1, 3, (15, 4.5))
    accuracy, cost, gaps = axes[0]
    l2 = [row["l2"] for row in rows]
    train = [100 * row["train_accuracy"] for row in rows]
    accuracy.plot(l2, train, ".-", color=COLOURS["train"], label=LABELS["train"])
    accuracy.errorbar(
        l2, [100 * row["val_accuracy"] for row in rows], [100 * row["val_error"] for row in rows],
        fmt=".-", capsize=2, color=COLOURS["val"], label=LABELS["val"],
    )  # fmt: skip
    accuracy.set_ylabel("accuracy (%), validation ± standard error")
    cost.plot(l2, [row["cost"] for row in rows], ".-", color=COLOURS["train"], label="cost J")
    cost.plot(l2, [row["train_loss"] for row in rows], ".--", color="gray", label="loss alone")
    cost.set_ylabel("minimum cost")
    for axis in (accuracy, cost):
        scale_l2(axis, l2)
        axis.axvline(chosen, color=CHOSEN, lw=1, label="chosen")
        axis.legend()
    colour = colours_of(l2)
    for one, values in zip(l2, zip(*curve, strict=True), strict=True):
        line = [v for v in values if np.isfinite(v)]
        gaps.plot(range(1, len(line) + 1), line, color=colour(one), label=f"{one:.2g}")
    gaps.axhline(gap, color="black", lw=1, ls=":")
    gaps.set_yscale("log")
    gaps.set_xlabel("iterations")
    gaps.set_ylabel("cost above the minimum, estimate")
    if len(l2) > MOST_COLOURS:
        add_scale(figure, axes, l2)
    else:
        gaps.legend(title="λ")
    figure.suptitle(describe(f"optimum of the linear layer, {len(rows)} λ", dataset, 0))
    save(figure, output)


def plot_range(
    rows: Sequence[Row],
    proposals: Mapping[float, Sequence[float]],
    output: str | Path,
    dataset: str,
    network: str,
) -> None:
    """Plot loss and accuracy on validation over the rate, a line per λ, with the proposed ends.

    Args:
        rows: measurements, as in range.csv.
        proposals: ends of a cycle, by λ.
        output: PNG to write.
        dataset: name of the data.
        network: what was trained, in words.
    """
    figure, axes = new_figure(1, 2, (11, 4.2))
    val = [row for row in rows if row.split == "val"]
    colour = colours_of(list(proposals))
    for l2, own in grouped(val, attrgetter("l2")).items():
        rates = grouped(own, attrgetter("lr"))
        for axis, name, unit in zip(axes.flat, ("loss", "accuracy"), (1, 100), strict=True):
            mean = [np.mean([unit * getattr(r, name) for r in rows]) for rows in rates.values()]
            axis.plot(list(rates), mean, marker=".", color=colour(l2), label=f"λ = {l2:.3g}")
            for rate in proposals[l2]:
                axis.axvline(rate, color=colour(l2), linestyle=":", linewidth=1)
    for axis, label in zip(axes.flat, ("cross-entropy loss", "accuracy (%)"), strict=True):
        axis.set_xscale("log")
        axis.set_xlabel("learning rate η")
        axis.set_ylabel(f"{label}, validation")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0, 0].set_ylim(top=1.5 * min(row.loss for row in val if row.step == 0), bottom=0)
    title = f"{network}: learning rate range test"
    figure.suptitle(describe(title, dataset, 0, "proposed ends dotted"))
    save(figure, output)


def plot_widths(
    rows: Sequence[Mapping[str, Any]], kinds: Mapping[bool, str], output: str | Path, dataset: str
) -> None:
    """Plot accuracy over hidden units beside parameters and seconds, on logarithmic axes.

    Args:
        rows: rows of widths.csv.
        kinds: description of the training images, by whether they are augmented.
        output: PNG to write.
        dataset: name of the data.
    """
    figure, ((left, right),) = new_figure(1, 2, (12, 4.8))
    widths = sorted({row["hidden"] for row in rows})
    smallest = min((w for w in widths if w), default=1)
    x_of = {w: w or smallest / 3 for w in widths}  # the linear network is left of the others
    for augmented, words in kinds.items():
        own = sorted((r for r in rows if r["augmented"] == augmented), key=lambda r: r["hidden"])
        style, x = "s--" if augmented else "o-", [x_of[row["hidden"]] for row in own]
        _draw_accuracies(left, own, x, style, words)
        seconds = [row["seconds"] for row in own]
        if own:
            right.plot(x, seconds, style, color="#444", label=f"seconds, {words}")
    counts = {row["hidden"]: row["parameters"] for row in rows}
    x = [x_of[w] for w in counts]
    right.plot(x, [*counts.values()], ":", color="#999", label="parameters")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks([*x_of.values()], [str(w) if w else "linear" for w in x_of], rotation=45)
        axis.minorticks_off()
        axis.set_xlabel("hidden units")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    right.set_yscale("log")
    left.set_ylabel("accuracy (%)")
    right.set_ylabel("parameters of a network; seconds of a run")
    figure.suptitle(describe("accuracy by width", dataset, 0))
    save(figure, output)


def _draw_accuracies(
    axis: Axes, rows: Sequence[Mapping[str, Any]], x: Sequence[float], style: str, words: str
) -> None:
    """Draw mean and standard deviation of both splits, and the ensemble's test accuracy."""
    for split in ("train", "test", "test_ensemble"):
        drawn = [(at, row) for at, row in zip(x, rows, strict=True) if row[split] is not None]
        at, y = [at for at, _ in drawn], [100 * row[split] for _, row in drawn]
        if split in COLOURS:
            std, label = [100 * row[f"{split}_std"] for _, row in drawn], f"{split}, {words}"
            colour = COLOURS[split]
            axis.errorbar(at, y, std, fmt=style, ms=4, capsize=2, color=colour, label=label)
        elif drawn:
            label = f"test of the ensemble, {words}"
            axis.plot(at, y, style[1:], lw=1, color="black", label=label)

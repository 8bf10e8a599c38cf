"""Figures from rows. Nothing here trains."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onelayer.study.plan import SHOWN, best_of_each, format_setting, setting_of
from onelayer.training.classification import BINS
from onelayer.training.files import atomic_write
from onelayer.training.folder import run_folder
from onelayer.training.members import best_l2
from onelayer.training.observer import Observer, observers
from onelayer.training.records import Row, diverged, finals, read_rows
from onelayer.training.summary import network_name

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Trainer
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from onelayer.study.plan import Candidate

COLOURS = {"train": "#1f6fb4", "val": "#d9622b", "test": "#3a923a"}
LABELS = {"train": "training", "val": "validation", "test": "test"}
TITLES = {"cost": "cost J", "loss": "cross-entropy loss", "accuracy": "accuracy (%)"}
MOST_NAMES, MOST_NUMBERS = 50, 20
"""Classes whose names, and whose counts, a confusion matrix shows."""
MOST_COLOURS = 8
"""λ that have a colour and a line in the legend each; more have a scale of colours."""


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure that needs no display, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    atomic_write(path, content.getbuffer())


class PlotCurves(Observer):
    """Draws curves.png in the run's folder when a training has ended, of what Curves has written.

    It is told by :class:`~onelayer.training.results.Results` that the training has ended, and by
    :class:`~onelayer.training.results.Results` what the test split looks like: test.png.

    Args:
        title: the beginning of the picture's title; the network and the data by default.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title

    def on_summary(self, trainer: Trainer, summary: dict[str, Any]) -> None:
        """Draw, before the figures of a test join the summary: they are not in the picture."""
        folder = run_folder(trainer)
        tested = any("test" in member for member in summary["members"])
        if tested or folder is None or not (curves := folder / "curves.csv").is_file():
            return
        rows = next((o.measured_rows for o in observers(trainer) if o.measured_rows), None)
        title = self.title or f"{network_name(summary['hidden'])}, {summary['dataset']}"
        plot_curves(curves, folder / "curves.png", summary["dataset"], title, rows)

    def on_report(self, trainer: Trainer, report: dict[str, Any], folder: Path) -> None:
        """Draw the confusion matrix and the reliability of what test.json holds."""
        plot_test(report, folder / "test.png")


def describe(title: str, dataset: str, diverged: int, shows: str = "") -> str:
    """A figure's title, with what must be said of its networks and of built-in images."""
    words = [
        title,
        shows,
        f"{diverged} diverged" if diverged else "",
        "built-in synthetic images, NOT CIFAR-10" if dataset == "synthetic" else "",
    ]
    return ", ".join(filter(None, words))


def plot_curves(
    curves: str | Path,
    output: str | Path,
    dataset: str = "",
    title: str = "",
    train_rows: int | None = None,
) -> None:
    """Cost, loss, accuracy and learning rate of one run against the number of updates.

    Each λ has a line, the mean over its seeds with a band of one standard deviation. Members that
    have diverged are left out of the mean and counted in the title. Of several λ, each has a
    colour, training is dashed, and the best on validation is marked.

    Args:
        curves: curves.csv of a run.
        output: PNG to write.
        dataset: "synthetic" is said in the title.
        title: the title's beginning; the data set by default.
        train_rows: rows of the training split that points between the first and the last are of;
            None for all.
    """
    rows = read_rows(Path(curves))
    figure, axes = new_figure(2, 2, (11, 7.5))
    updates = "updates"
    if train_rows is not None:
        updates += f"\n(training: {train_rows:,} random rows between the first and last point)"
    lines = list(_lines(rows))
    for axis, quantity in zip(axes.flat, TITLES, strict=False):
        for line in lines:
            _draw(axis, line, quantity)
        axis.set_ylabel(TITLES[quantity])
    rates = sorted({(row.step, row.lr) for row in rows})
    axes[1, 1].plot(*zip(*rates, strict=True), marker=".", color="#555555")
    axes[1, 1].set_ylabel("learning rate η")
    if len({row.l2 for row in rows}) > MOST_COLOURS:
        _add_scale(figure, axes, [row.l2 for row in rows])
    for axis in axes.flat:
        axis.set_xlabel("updates" if axis is axes[1, 1] else updates)  # the rate is of no rows
        axis.grid(alpha=0.3)
        axis.set_xlim(0, max(row.step for row in rows) or 1)
    _add_legend(figure, axes[0, 0], lines)
    figure.suptitle(title_of(rows, dataset, title or dataset or "one run"))
    save(figure, output)


def _add_legend(figure: Figure, axis: Axes, lines: Sequence[_Line]) -> None:
    """One legend for all charts, below them, by rising λ: inside it would hide the best lines."""
    order = [line.label for line in sorted(lines, key=lambda line: line.l2)]
    handles, labels = axis.get_legend_handles_labels()
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: order.index(pair[1]))
    columns = min(4, len(pairs))
    figure.legend(*zip(*pairs, strict=True), loc="outside lower center", ncols=columns)


def title_of(rows: Sequence[Row], dataset: str, title: str) -> str:
    """What a figure of a run's curves shows."""
    members, l2s = {row.member for row in rows}, {row.l2 for row in rows}
    gone = len(diverged(rows))
    shows = f"mean ± std of {len(members) - gone} networks" if len(members) > 1 else ""
    if len(l2s) > 1:
        seeds = len(members) // len(l2s)
        shows = f"{len(l2s)} λ" + (f", each mean ± std of {seeds} seeds" if seeds > 1 else "")
        shows += ", training dashed" if len({row.split for row in rows} - {"test"}) > 1 else ""
    return describe(title, dataset, gone, shows)


@dataclass(frozen=True)
class _Line:
    """What one line of every chart shows, and how: the networks of one λ over one split."""

    rows: Sequence[Row]  # of members that have not diverged
    colour: Any
    label: str = ""
    band: float = 0.2  # opacity of the band of one standard deviation
    dashed: bool = False
    best: bool = False
    l2: float = 0.0


def _lines(rows: Sequence[Row]) -> Iterator[_Line]:
    """The lines of a run's charts, the best on validation last, above all others."""
    gone, l2s = diverged(rows), sorted({row.l2 for row in rows})
    splits = [split for split in ("train", "val") if any(row.split == split for row in rows)]
    sound = [row for row in rows if row.member not in gone]
    if len(l2s) == 1:
        for split in splits:
            own = [row for row in sound if row.split == split]
            label = LABELS[split] if own else f"{LABELS[split]}: all diverged"
            yield _Line(own, COLOURS[split], label)
        return
    best = best_l2(*finals(rows, "val")) if "val" in splits else None
    colours = _colours(l2s)
    for l2 in sorted(l2s, key=lambda l2: l2 == best):
        for split in splits:
            own = [row for row in sound if (row.split, row.l2) == (split, l2)]
            solid = split == splits[-1]
            named = solid and (l2 == best or len(l2s) <= MOST_COLOURS)
            label = _label(l2, bool(own), l2 == best) if named else ""
            crowded = len(l2s) > MOST_COLOURS
            colour = "black" if crowded and l2 == best else colours(l2)
            band = 0.0 if crowded and l2 != best else 0.12
            yield _Line(own, colour, label, band, not solid, l2 == best, l2)


def _label(l2: float, sound: bool, best: bool) -> str:
    if not sound:
        return f"λ = {l2:.3g}: all diverged"
    return f"λ = {l2:.3g}" + (", best on validation" if best else "")


def _draw(axis: Axes, line: _Line, quantity: str) -> None:
    by_step: dict[int, list[float]] = defaultdict(list)
    for row in sorted(line.rows):
        by_step[row.step].append(getattr(row, quantity))
    unit = 100 if quantity == "accuracy" else 1
    mean = np.array([unit * np.mean(values) for values in by_step.values()])
    axis.plot(
        list(by_step),
        mean,
        marker="*" if line.best else ".",
        color=line.colour,
        label=line.label or None,
        linestyle="--" if line.dashed else "-",
        linewidth=2.5 if line.best and not line.dashed else None,
    )
    if line.band and any(len(values) > 1 for values in by_step.values()):
        std = np.array([unit * np.std(values, ddof=1) for values in by_step.values()])
        band = mean - std, mean + std
        axis.fill_between(list(by_step), *band, color=line.colour, alpha=line.band, lw=0)


def _norm(l2s: Sequence[float]) -> Any:
    """The scale of λ: logarithmic, and 0 at its lower end."""
    from matplotlib.colors import LogNorm

    positive = [l2 for l2 in l2s if l2 > 0]
    low = min(positive) / (3 if 0 in l2s else 1)
    return LogNorm(low, max(max(positive), 1.001 * low), clip=True)


def _colours(l2s: Sequence[float]) -> Callable[[float], Any]:
    """The colour of each λ."""
    from matplotlib import colormaps

    if len(l2s) <= MOST_COLOURS:
        return lambda l2: colormaps["Dark2"](list(l2s).index(l2))
    norm = _norm(l2s)
    return lambda l2: colormaps["viridis"](norm(max(l2, norm.vmin)))


def _add_scale(figure: Figure, axes: np.ndarray, l2s: Sequence[float]) -> None:
    """A scale of the colours of many λ."""
    from matplotlib.cm import ScalarMappable

    scale = ScalarMappable(_norm(l2s), "viridis")
    label = "λ (0 at the lower end)" if 0 in l2s else "λ"
    figure.colorbar(scale, ax=axes, label=label, fraction=0.04)


def plot_search(
    rows: Sequence[Mapping[str, Any]],
    candidates: Sequence[Candidate],
    chosen: Candidate,
    best: Candidate,
    output: str | Path,
    dataset: str,
) -> None:
    """Validation accuracy against λ: every trial, each λ's mean and standard error, the choice.

    Where other arguments are searched as well, each setting has a colour, and stands with its best
    λ in a second chart.

    ``rows`` are those of search.csv, ``candidates`` the λ that did not diverge.
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
    axis.plot(chosen.l2, 100 * chosen.mean, "*", ms=16, color="#d62728", label="chosen")
    _scale_l2(axis, [c.l2 for c in candidates])
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
    """Every λ of a search, a colour for each stage."""
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


def _scale_l2(axis: Axes, l2s: Sequence[float]) -> None:
    """A logarithmic axis of λ with few labels: within a decade those of some λ."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.set_xlabel("λ")
    axis.xaxis.set_minor_formatter(NullFormatter())
    low, high = min(l2s), max(l2s)
    if high >= 100 * low:
        axis.xaxis.set_major_locator(LogLocator(numticks=6))
        return
    ticks = sorted({float(f"{t:.2g}") for t in np.geomspace(low, high, 4)})
    axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])


def _zoom(axis: Axes, candidates: Sequence[Candidate], best: Candidate) -> None:
    """Show the better λ; a triangle at the bottom stands for each that is far below."""
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
    """Every λ of the settings, a colour for each of the best, and beside it their best λ.

    ``firsts`` are the best λ of each setting that is shown, the best first.
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
    """A path of λ: accuracy and cost over λ, and each member's gap over the iterations.

    Args:
        rows: as in path.csv.
        curve: the members' gaps after each pass.
        chosen: λ.
        gap: that was asked for.
        output: PNG to write.
        dataset: "synthetic" is said in the title.
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
    cost.plot(l2, [row["train_loss"] for row in rows], ".--", color="gray", label="of it, the loss")
    cost.set_ylabel("least cost")
    for axis in (accuracy, cost):
        _scale_l2(axis, l2)
        axis.axvline(chosen, color="#d62728", lw=1, label="chosen")
        axis.legend()
    colour = _colours(l2)
    for one, values in zip(l2, zip(*curve, strict=True), strict=True):
        line = [v for v in values if np.isfinite(v)]
        gaps.plot(range(1, len(line) + 1), line, color=colour(one), label=f"{one:.2g}")
    gaps.axhline(gap, color="black", lw=1, ls=":")
    gaps.set_yscale("log")
    gaps.set_xlabel("iterations")
    gaps.set_ylabel("cost above the least, estimate")
    if len(l2) > MOST_COLOURS:
        _add_scale(figure, axes, l2)
    else:
        gaps.legend(title="λ")
    figure.suptitle(describe(f"optimum of the linear layer, {len(rows)} λ", dataset, 0))
    save(figure, output)


def plot_test(report: Mapping[str, Any], output: str | Path) -> None:
    """Confusion matrix and reliability of the test split.

    Args:
        report: what test.json holds.
        output: PNG to write.
    """
    names = [one["class"] for one in report["classes"]]
    figure, axes = new_figure(1, 2, (12, 5.5))
    _draw_confusion(axes[0, 0], np.array(report["confusion"]), names)
    _draw_reliability(axes[0, 1], report["bins"], report["calibration_error"])
    title = f"test split, {report['samples']:,} samples: accuracy {100 * report['accuracy']:.2f} %"
    figure.suptitle(describe(title, report["dataset"], 0))
    save(figure, output)


def _draw_confusion(axis: Axes, confusion: np.ndarray, names: Sequence[str]) -> None:
    """The share of each true class (a row) that each class was guessed for."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xlabel("guessed class")
    axis.set_ylabel("true class")
    k = len(names)
    shown = range(0, k, -(-k // MOST_NAMES))
    size = "small" if k <= MOST_NUMBERS else 5
    short = [name if len(name) <= 16 else f"{name[:15]}…" for name in (names[i] for i in shown)]
    axis.set_xticks(shown, short, rotation=90, fontsize=size)
    axis.set_yticks(shown, short, fontsize=size)
    if len(shown) < k:
        axis.set_title(f"{len(shown)} of the {k} classes have their name here", fontsize="small")
    if k <= MOST_NUMBERS:
        for i, j in np.argwhere(confusion > 0):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, confusion[i, j], ha="center", va="center", fontsize=7, color=colour)


def _draw_reliability(axis: Axes, bins: Sequence[Mapping[str, Any]], error: float) -> None:
    """Accuracy against confidence: on the diagonal, probabilities are what they say."""
    confidence = [100 * one["confidence"] for one in bins]
    accuracy = [100 * one["accuracy"] for one in bins]
    total = sum(one["samples"] for one in bins)
    axis.plot([0, 100], [0, 100], color="#999999", linestyle="--", label="calibrated")
    axis.plot(confidence, accuracy, marker="o", color=COLOURS["test"], label="test")
    width = 100 / BINS
    centres = [(min(int(c / width), BINS - 1) + 0.5) * width for c in confidence]
    axis.bar(
        centres, [100 * one["samples"] / total for one in bins], width=0.9 * width,
        color="#bbbbbb", alpha=0.6, label="share of the samples",
    )  # fmt: skip
    axis.set_xlabel("confidence (%)")
    axis.set_ylabel("accuracy (%)")
    axis.set_title(f"expected calibration error {100 * error:.2f} %", fontsize="medium")
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 100)
    axis.grid(alpha=0.3)
    axis.legend()


def plot_weights(W: torch.Tensor, output: str | Path, titles: Sequence[str]) -> None:
    """Weights (units, 3072) of one member as images, each scaled to its own range.

    ``titles`` are one per unit, or none at all.
    """
    columns = 5 if len(W) <= 10 else 10
    rows = -(-len(W) // columns)
    figure, axes = new_figure(rows, columns, (1.3 * columns, (1.5 if titles else 1.35) * rows))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, w in zip(axes.flat, W, strict=False):
        picture = w.view(3, 32, 32).permute(1, 2, 0).double()
        low, high = picture.min(), picture.max()
        axis.imshow(((picture - low) / (high - low)).numpy())
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=9)
    save(figure, output)

"""Figures from rows. Nothing here trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onelayer.training.divergence import diverged
from onelayer.training.records import Row, read_rows

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from onelayer.study.plan import Candidate

COLOURS = {"train": "#1f6fb4", "val": "#d9622b", "test": "#3a923a"}
LABELS = {"train": "training", "val": "validation", "test": "test"}
TITLES = {"cost": "cost J", "loss": "cross-entropy loss", "accuracy": "accuracy (%)"}


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure that needs no display, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def plot_curves(curves: str | Path, output: str | Path, dataset: str = "", title: str = "") -> None:
    """Cost, loss, accuracy and learning rate of one run against the number of updates.

    Several members are drawn as their mean with a band of one standard deviation. Members whose
    figures stopped being finite are left out of the mean and counted in the title.

    Args:
        curves: curves.csv of a run.
        output: PNG to write.
        dataset: "synthetic" is said in the title.
        title: the title's beginning; the run's folder by default.
    """
    rows = read_rows(Path(curves))
    figure, axes = new_figure(2, 2, (11, 7.5))
    for axis, quantity in zip(axes.flat, TITLES, strict=False):
        for split in ("train", "val"):
            _draw(axis, rows, split, quantity)
        axis.set_ylabel(TITLES[quantity])
        axis.legend()
    _draw_rate(axes[1, 1], rows)
    for axis in axes.flat:
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
        axis.set_xlim(0, max(row.step for row in rows) or 1)
    figure.suptitle(title_of(rows, dataset, title or "/".join(Path(curves).parent.parts[-2:])))
    figure.savefig(output, dpi=110)


def title_of(rows: Sequence[Row], dataset: str, title: str) -> str:
    """What the figure shows, with the built-in data and diverged members said."""
    members = {row.member for row in rows}
    gone = diverged(rows)
    words = [title]
    if len(members) > 1:
        words.append(f"mean ± std of {len(members) - len(gone)} networks")
    if gone:
        words.append(f"{len(gone)} diverged")
    if dataset == "synthetic":
        words.append("built-in synthetic images, NOT CIFAR-10")
    return ", ".join(words)


def _draw(axis: Axes, rows: Sequence[Row], split: str, quantity: str) -> None:
    gone = diverged(rows)
    by_step: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.split == split and row.member not in gone:
            by_step[row.step].append(
                getattr(row, quantity) * (100 if quantity == "accuracy" else 1)
            )
    if not any(row.split == split for row in rows):
        return  # there is no such split
    if not by_step:
        axis.plot([], [], marker=".", color=COLOURS[split], label=f"{LABELS[split]}: all diverged")
        return
    steps = sorted(by_step)
    mean = np.array([np.mean(by_step[step]) for step in steps])
    axis.plot(steps, mean, marker=".", color=COLOURS[split], label=LABELS[split])
    if any(len(values) > 1 for values in by_step.values()):
        std = np.array([np.std(by_step[step], ddof=1) for step in steps])
        axis.fill_between(steps, mean - std, mean + std, color=COLOURS[split], alpha=0.2, lw=0)


def _draw_rate(axis: Axes, rows: Sequence[Row]) -> None:
    rates = sorted({(row.step, row.lr) for row in rows})
    axis.plot(*zip(*rates, strict=True), marker=".", color="#555555", label="learning rate")
    axis.set_ylabel("learning rate η")
    axis.legend()


def plot_search(
    rows: Sequence[Mapping[str, Any]],
    candidates: Sequence[Candidate],
    chosen: Candidate,
    best: Candidate,
    output: str | Path,
    dataset: str = "",
) -> None:
    """Validation accuracy against λ: every trial, each λ's mean and standard error, the choice.

    Args:
        rows: as in search.csv.
        candidates: the λ that did not diverge.
        chosen: the choice, by whichever rule.
        best: the best mean.
        output: PNG to write.
        dataset: "synthetic" is said in the title.
    """
    figure, axes = new_figure(1, 1, (9, 5.5))
    axis = axes[0, 0]
    stages = sorted({row["stage"] for row in rows})
    for stage, colour in zip(stages, _stage_colours(len(stages)), strict=True):
        trials = [row for row in rows if row["stage"] == stage and not row["diverged"]]
        axis.scatter(
            [row["l2"] for row in trials],
            [100 * float(row["val_accuracy"]) for row in trials],
            s=9, color=colour, alpha=0.5,
        )  # fmt: skip
        points = [c for c in candidates if c.stage == stage]
        axis.errorbar(
            [c.l2 for c in points],
            [100 * c.mean for c in points],
            [100 * c.error for c in points],
            fmt="o", ms=4, lw=1, capsize=2, color=colour, label=f"stage {stage}",
        )  # fmt: skip
    axis.plot(best.l2, 100 * best.mean, "s", ms=12, mfc="none", color="black", label="best mean")
    axis.plot(chosen.l2, 100 * chosen.mean, "*", ms=16, color="#d62728", label="chosen")
    axis.set_xscale("log")
    axis.set_xlabel("λ")
    axis.set_ylabel("validation accuracy (%), mean ± standard error")
    axis.grid(alpha=0.3)
    axis.legend()
    gone = sum(bool(row["diverged"]) for row in rows)
    words = [f"search for λ, {len(rows)} networks", f"{gone} diverged" if gone else ""]
    if dataset == "synthetic":
        words.append("built-in synthetic images, NOT CIFAR-10")
    figure.suptitle(", ".join(filter(None, words)))
    figure.savefig(output, dpi=110)


def _stage_colours(n: int) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](0.85 * i / max(n - 1, 1))) for i in range(n)]


def plot_weights(W: torch.Tensor, output: str | Path, titles: Sequence[str] | None = None) -> None:
    """Weights as images, each scaled to its own range.

    Args:
        W: (units, 3072), the weights of one layer of one member.
        output: PNG to write.
        titles: one per unit.
    """
    columns = 5 if len(W) <= 10 else 10
    rows = -(-len(W) // columns)
    figure, axes = new_figure(rows, columns, (1.3 * columns, (1.5 if titles else 1.35) * rows))
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (axis, w) in enumerate(zip(axes.flat, W, strict=False)):
        picture = w.view(3, 32, 32).permute(1, 2, 0).double()
        low, high = picture.min(), picture.max()
        axis.imshow(((picture - low) / (high - low)).numpy())
        if titles:
            axis.set_title(titles[i], fontsize=9)
    figure.savefig(output, dpi=110)

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


def describe(title: str, dataset: str, diverged: int, mean_of: int = 0) -> str:
    """A figure's title, with what must be said of its networks and of built-in images."""
    words = [
        title,
        f"mean ± std of {mean_of} networks" if mean_of else "",
        f"{diverged} diverged" if diverged else "",
        "built-in synthetic images, NOT CIFAR-10" if dataset == "synthetic" else "",
    ]
    return ", ".join(filter(None, words))


def plot_curves(curves: str | Path, output: str | Path, dataset: str = "", title: str = "") -> None:
    """Cost, loss, accuracy and learning rate of one run against the number of updates.

    Several members are drawn as their mean with a band of one standard deviation. Members that have
    diverged are left out of the mean and counted in the title.

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
    rates = sorted({(row.step, row.lr) for row in rows})
    axes[1, 1].plot(*zip(*rates, strict=True), marker=".", color="#555555", label="learning rate")
    axes[1, 1].set_ylabel("learning rate η")
    for axis in axes.flat:
        axis.legend()
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
        axis.set_xlim(0, max(row.step for row in rows) or 1)
    figure.suptitle(title_of(rows, dataset, title or "/".join(Path(curves).parent.parts[-2:])))
    figure.savefig(output, dpi=110)


def title_of(rows: Sequence[Row], dataset: str, title: str) -> str:
    """What a figure of a run's curves shows."""
    members, gone = len({row.member for row in rows}), len(diverged(rows))
    return describe(title, dataset, gone, members - gone if members > 1 else 0)


def _draw(axis: Axes, rows: Sequence[Row], split: str, quantity: str) -> None:
    gone = diverged(rows)
    rows = [row for row in rows if row.split == split]
    if not rows:
        return  # there is no such split
    by_step: dict[int, list[float]] = defaultdict(list)
    for row in sorted(rows):
        if row.member not in gone:
            by_step[row.step].append(getattr(row, quantity))
    unit = 100 if quantity == "accuracy" else 1
    label = LABELS[split] if by_step else f"{LABELS[split]}: all diverged"
    mean = np.array([unit * np.mean(values) for values in by_step.values()])
    axis.plot(list(by_step), mean, marker=".", color=COLOURS[split], label=label)
    if any(len(values) > 1 for values in by_step.values()):
        std = np.array([unit * np.std(values, ddof=1) for values in by_step.values()])
        band = mean - std, mean + std
        axis.fill_between(list(by_step), *band, color=COLOURS[split], alpha=0.2, lw=0)


def plot_search(
    rows: Sequence[Mapping[str, Any]],
    candidates: Sequence[Candidate],
    chosen: Candidate,
    best: Candidate,
    output: str | Path,
    dataset: str,
) -> None:
    """Validation accuracy against λ: every trial, each λ's mean and standard error, the choice.

    ``rows`` are those of search.csv, ``candidates`` the λ that did not diverge.
    """
    from matplotlib import colormaps

    figure, axes = new_figure(1, 1, (9, 5.5))
    axis = axes[0, 0]
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
    figure.suptitle(describe(f"search for λ, {len(rows)} networks", dataset, gone))
    figure.savefig(output, dpi=110)


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
    figure.savefig(output, dpi=110)

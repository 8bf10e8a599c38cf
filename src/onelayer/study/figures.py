"""The style of all figures, and the figures of one run: curves, test report, weights."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from onelayer.training.classification import BINS
from onelayer.training.files import atomic_write
from onelayer.training.folder import run_folder
from onelayer.training.members import best_l2
from onelayer.training.module import OneLayer
from onelayer.training.observer import Observer, observers
from onelayer.training.records import Row, diverged, finals, read_rows
from onelayer.training.summary import network_name
from onelayer.training.weight_images import picture_of, save_picture

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"train": "#1f6fb4", "val": "#d9622b", "test": "#3a923a"}
LABELS = {"train": "training", "val": "validation", "test": "test"}
TITLES = {"cost": "cost J", "loss": "cross-entropy loss", "accuracy": "accuracy (%)"}
MOST_NAMES, MOST_NUMBERS = 50, 20  # classes whose names, and whose counts, a matrix shows
FEW = 4  # λ that each get a tick
MOST_COLOURS = 8  # λ with a colour and a line in the legend each; more get a scale of colours


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Return a figure that needs no display, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, complete or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    atomic_write(path, content.getbuffer())


class PlotCurves(Observer):
    """Callback that draws curves.png, test.png and, for images, weights.png.

    Args:
        title: beginning of the figure's title; the network by default.
    """

    def __init__(self, title: str = "") -> None:
        self.title = title

    def on_summary(self, trainer: Trainer, summary: dict[str, Any]) -> None:
        """Draw the curves, once: not again when the test results join the summary."""
        folder = run_folder(trainer)
        tested = any("test" in member for member in summary["members"])
        if tested or folder is None or not (curves := folder / "curves.csv").is_file():
            return
        rows = next((o.measured_rows for o in observers(trainer) if o.measured_rows), None)
        title = self.title or network_name(summary["hidden"])
        plot_curves(curves, folder / "curves.png", summary["dataset"], title, rows)
        plot_weights(cast(Any, trainer.lightning_module), folder / "weights.png")

    def on_report(self, trainer: Trainer, report: dict[str, Any], folder: Path) -> None:
        """Draw the confusion matrix and the reliability diagram."""
        plot_test(report, folder / "test.png")


def plot_weights(network: OneLayer, path: str | Path) -> None:
    """Draw the weights of one network of the λ best on validation, if samples are images."""
    if (sheet := picture_of(network)) is not None:
        save_picture(sheet, path)


def describe(title: str, dataset: str, diverged: int, shows: str = "") -> str:
    """Return a figure's title, with the data set and the number of diverged networks."""
    synthetic = dataset == "synthetic"
    words = [
        title,
        "" if synthetic else dataset,
        shows,
        f"{diverged} diverged" if diverged else "",
        "built-in synthetic images, NOT CIFAR-10" if synthetic else "",
    ]
    return ", ".join(filter(None, words))


def plot_curves(
    curves: str | Path,
    output: str | Path,
    dataset: str = "",
    title: str = "one run",
    train_rows: int | None = None,
) -> None:
    """Plot cost, loss, accuracy and learning rate of one run over updates.

    Each λ has a line: the mean over its seeds, with a band of one standard deviation. Diverged
    members are left out of the mean and counted in the title. With several λ, each has a colour,
    training is dashed, and the best on validation is marked.

    Args:
        curves: curves.csv of a run.
        output: PNG to write.
        dataset: name of the data, which the title has.
        title: beginning of the title.
        train_rows: training samples measured between the first and the last point; None for all.
    """
    rows = read_rows(Path(curves))
    figure, axes = new_figure(2, 2, (11, 7.5))
    updates = "updates"
    if train_rows is not None:
        updates += f"\n(training: {train_rows:,} random samples, but all at both ends)"
    lines = list(_lines(rows))
    for axis, quantity in zip(axes.flat, TITLES, strict=False):
        for line in lines:
            _draw(axis, line, quantity)
        axis.set_ylabel(TITLES[quantity])
    rates = sorted({(row.step, row.lr) for row in rows})
    axes[1, 1].plot(*zip(*rates, strict=True), marker=".", color="#555555")
    axes[1, 1].set_ylabel("learning rate η")
    if len({row.l2 for row in rows}) > MOST_COLOURS:
        add_scale(figure, axes, [row.l2 for row in rows])
    for axis in axes.flat:
        axis.set_xlabel("updates" if axis is axes[1, 1] else updates)  # the rate is of no rows
        axis.grid(alpha=0.3)
        axis.set_xlim(0, max(row.step for row in rows) or 1)
    _add_legend(figure, axes[0, 0], lines)
    figure.suptitle(title_of(rows, dataset, title))
    save(figure, output)


def _add_legend(figure: Figure, axis: Axes, lines: Sequence[_Line]) -> None:
    """Add one legend below all charts, by rising λ; inside, it would hide the best lines."""
    order = [line.label for line in sorted(lines, key=lambda line: line.l2)]
    handles, labels = axis.get_legend_handles_labels()
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: order.index(pair[1]))
    columns = min(4, len(pairs))
    figure.legend(*zip(*pairs, strict=True), loc="outside lower center", ncols=columns)


def title_of(rows: Sequence[Row], dataset: str, title: str) -> str:
    """Return the title of a figure of a run's curves."""
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
    """One line of every chart: the networks of one λ over one split."""

    rows: Sequence[Row]  # of members that have not diverged
    colour: Any
    label: str = ""
    band: float = 0.2  # opacity of the band of one standard deviation
    dashed: bool = False
    best: bool = False
    l2: float = 0.0


def _lines(rows: Sequence[Row]) -> Iterator[_Line]:
    """Yield the lines of a run's charts, the best on validation last, above all others."""
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
    colours = colours_of(l2s)
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
    """Return the scale of λ: logarithmic, with 0 at its lower end."""
    from matplotlib.colors import LogNorm

    positive = [l2 for l2 in l2s if l2 > 0]
    low = min(positive) / (3 if 0 in l2s else 1)
    return LogNorm(low, max(max(positive), 1.001 * low), clip=True)


def colours_of(l2s: Sequence[float]) -> Callable[[float], Any]:
    """Return the colour of each λ."""
    from matplotlib import colormaps

    if len(l2s) <= MOST_COLOURS:
        return lambda l2: colormaps["Dark2"](list(l2s).index(l2))
    norm = _norm(l2s)
    return lambda l2: colormaps["viridis"](norm(max(l2, norm.vmin)))


def add_scale(figure: Figure, axes: np.ndarray, l2s: Sequence[float]) -> None:
    """Add a colour bar for many λ."""
    from matplotlib.cm import ScalarMappable

    scale = ScalarMappable(_norm(l2s), "viridis")
    label = "λ (0 at the lower end)" if 0 in l2s else "λ"
    figure.colorbar(scale, ax=axes, label=label, fraction=0.04)


def scale_l2(axis: Axes, l2s: Sequence[float]) -> None:
    """Make the x-axis a logarithmic scale of λ with few labels: of few λ, at each of them."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axis.set_xscale("log")
    axis.set_xlabel("λ")
    axis.xaxis.set_minor_formatter(NullFormatter())
    values = sorted(set(l2s))
    low, high = values[0], values[-1]
    apart = all(b > a * (high / low) ** 0.1 for a, b in pairwise(values))
    if len(values) <= FEW and apart:
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(values, [f"{value:.3g}" for value in values])
        return
    if high >= 100 * low:
        axis.xaxis.set_major_locator(LogLocator(numticks=6))
        return
    ticks = sorted({float(f"{t:.2g}") for t in np.geomspace(low, high, 4)})
    axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])


def plot_test(report: Mapping[str, Any], output: str | Path) -> None:
    """Plot confusion matrix and reliability diagram of the test split.

    Args:
        report: content of test.json.
        output: PNG to write.
    """
    names = [one["class"] for one in report["classes"]]
    figure, axes = new_figure(1, 2, (12, 5.5))
    _draw_confusion(axes[0, 0], np.array(report["confusion"]), names)
    _draw_reliability(axes[0, 1], report["bins"], report["calibration_error"])
    accuracy = f"accuracy {100 * report['accuracy']:.2f} % on {report['samples']:,} test samples"
    title = f"{report['networks']}: {accuracy}"
    figure.suptitle(describe(title, report["dataset"], 0))
    save(figure, output)


def _draw_confusion(axis: Axes, confusion: np.ndarray, names: Sequence[str]) -> None:
    """Draw the share of each true class (a row) that was predicted as each class."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xlabel("predicted class")
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
    """Draw accuracy over confidence; calibrated probabilities lie on the diagonal."""
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

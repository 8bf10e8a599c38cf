"""How far one layer goes: accuracy over the number of hidden units. Nothing here trains."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from onelayer.core.network import parameter_shapes
from onelayer.study.plots import COLOURS, describe, new_figure, save
from onelayer.study.tables import markdown, percent
from onelayer.training.summary import SPLITS, collect

OPTIONS = {
    False: {"final.cycles": 1},
    True: {"data.flip": True, "data.shift": 2},
}
"""Options by whether training images are changed; those that are not are soon learned by heart."""
KINDS = {False: "images as they are", True: "flipped and shifted"}

WidthRow = dict[str, Any]
"""As widths.csv has it, a row for each width, without and with changed images."""


def width_row(hidden: int, augmented: bool, found: Mapping[str, Any]) -> WidthRow:
    """The row of one width.

    Args:
        hidden: units.
        augmented: whether training images were flipped and shifted.
        found: what search.json holds.
    """
    final = found["final"]
    row: WidthRow = {
        "hidden": hidden,
        "augmented": augmented,
        "parameters": sum(map(prod, parameter_shapes(hidden).values())),
        "l2": found["l2"],
    }
    for split in SPLITS:
        values = collect(final["members"], split, "accuracy")
        row["networks"] = len(values)
        row[split] = statistics.fmean(values) if values else None
        row[f"{split}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    for split in SPLITS[1:]:
        ensembles = [one for one in final.get("ensembles", []) if split in one]
        row[f"{split}_ensemble"] = ensembles[0][split]["accuracy"] if ensembles else None
    row["updates"], row["seconds"] = final["steps"], final["seconds"]
    return row


def widths_table(rows: Sequence[WidthRow]) -> str:
    """All rows, in Markdown."""
    head = [
        "hidden units", "training images", "parameters", "λ", "training", "validation", "test",
        "test, ensemble", "seconds",
    ]  # fmt: skip
    return markdown(head, map(_cells, rows))


def _cells(row: WidthRow) -> list[str]:
    figures = [
        "diverged" if row[split] is None else percent(row[split], row[f"{split}_std"])
        for split in SPLITS
    ]
    ensemble = "" if row["test_ensemble"] is None else f"{100 * row['test_ensemble']:.2f}"
    return [
        str(row["hidden"]), KINDS[row["augmented"]], f"{row['parameters']:,}", f"{row['l2']:.2g}",
        *figures, ensemble, f"{row['seconds']:.0f}",
    ]  # fmt: skip


def best_width(rows: Sequence[WidthRow]) -> WidthRow:
    """The row with the best mean accuracy on validation."""
    return max(rows, key=lambda row: row["val"] or 0.0)


def plot_widths(rows: Sequence[WidthRow], output: Path, dataset: str) -> None:
    """Accuracy over hidden units beside parameters and seconds, on logarithmic axes.

    Args:
        rows: of widths.csv.
        output: PNG to write.
        dataset: "synthetic" is said in the title.
    """
    figure, ((left, right),) = new_figure(1, 2, (12, 4.8))
    widths = sorted({row["hidden"] for row in rows})
    least = min((w for w in widths if w), default=1)
    places = {w: w or least / 3 for w in widths}  # the linear network stands left of the others
    for augmented, words in KINDS.items():
        own = sorted((r for r in rows if r["augmented"] == augmented), key=lambda r: r["hidden"])
        if own:
            style = "o-" if augmented else "s--"
            _draw_accuracies(left, own, places, style, words)
            x = [places[row["hidden"]] for row in own]
            right.plot(
                x, [row["seconds"] for row in own], style, color="#444", label=f"seconds, {words}"
            )
    counts = {row["hidden"]: row["parameters"] for row in rows}
    right.plot(
        [places[w] for w in counts], [*counts.values()], ":", color="#999", label="parameters"
    )
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks(
            [*places.values()], [str(w) if w else "linear" for w in places], rotation=45
        )
        axis.minorticks_off()
        axis.set_xlabel("hidden units")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    right.set_yscale("log")
    left.set_ylabel("accuracy (%)")
    right.set_ylabel("parameters of a network; seconds of a training")
    figure.suptitle(describe("how far one layer goes", dataset, 0))
    save(figure, output)


def _draw_accuracies(
    axis: Any, rows: Sequence[WidthRow], places: Mapping[int, float], style: str, words: str
) -> None:
    for name, split, std in _lines():
        sound = [row for row in rows if row[split] is not None]
        x = [places[row["hidden"]] for row in sound]
        y = [100 * row[split] for row in sound]
        if std:
            errors = [100 * row[std] for row in sound]
            axis.errorbar(x, y, errors, fmt=style, ms=4, capsize=2, color=COLOURS[name],
                          label=f"{name}, {words}")  # fmt: skip
        elif sound:
            axis.plot(x, y, style[1:], lw=1, color="black", label=f"test of the ensemble, {words}")


def _lines() -> Iterator[tuple[str, str, str]]:
    """Colour, column and column of the deviation of each line."""
    for split in ("train", "test"):
        yield split, split, f"{split}_std"
    yield "ensemble", "test_ensemble", ""

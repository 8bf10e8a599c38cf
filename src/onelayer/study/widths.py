"""Accuracy by width: the rows of widths.csv, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from onelayer.core.network import parameter_shapes
from onelayer.study.formatting import markdown, percent
from onelayer.training.summary import SPLITS, collect

OPTIONS = {
    False: {"final.cycles": 1},
    True: {"data.flip": True, "data.shift": 2},
}
"""Options by whether training images are augmented; images as they are need fewer updates."""
KINDS = {False: "images as they are", True: "flipped and shifted"}

WidthRow = dict[str, Any]
"""Values of widths.csv, a row for each width, without and with augmentation."""


def width_row(hidden: int, augmented: bool, found: Mapping[str, Any]) -> WidthRow:
    """Return the row of one width.

    Args:
        hidden: units.
        augmented: whether training images were flipped and shifted.
        found: content of search.json.
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
    """Return all rows in Markdown."""
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
    """Return the row with the best mean accuracy on validation."""
    return max(rows, key=lambda row: row["val"] or 0.0)

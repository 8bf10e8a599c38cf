"""``onelayer range``: a learning rate range test, as a table, range.csv and range.png."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onelayer.core.checks import check_whole
from onelayer.core.errors import InputError
from onelayer.data.adapter import has_split, name_of
from onelayer.study.comparison_figures import plot_range
from onelayer.study.data_settings import make_data
from onelayer.study.run import alone_in, train_through
from onelayer.training.curves import Curves
from onelayer.training.progress import ProgressLine
from onelayer.training.range import Proposal, RangeTest, propose
from onelayer.training.records import write_rows
from onelayer.training.summary import network_name
from onelayer.training.text import table


@dataclass(frozen=True)
class Rates:
    """Rates to try.

    Args:
        min_lr: first rate.
        max_lr: last rate.
        steps: updates from the first to the last rate.
        points: measurements on the way.
    """

    min_lr: float = 1e-5
    max_lr: float = 1.0
    steps: int = 500
    points: int = 50


@dataclass(frozen=True)
class Range:
    """A range test of one or several λ.

    Args:
        rates: rates to try.
        model: arguments of OneLayer.
        data: settings of the data; there must be a validation split.
        output: folder for range.csv, in the format of curves.csv, and range.png.
        trainer: flags of the Trainer, such as precision.
    """

    rates: Rates
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    output: Path
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> dict[float, Proposal]:
        """Train, write both files, print the proposed rates, and return them for each λ.

        Raises:
            InputError: for an argument out of its range, or if no loss ever fell.
        """
        rates = self.rates
        check_whole("range.points", rates.points, 2, rates.steps)
        test, curves = RangeTest(rates.min_lr, rates.max_lr, rates.steps), Curves(rates.points)
        data = make_data(self.data)
        if not has_split(data, "val"):
            raise InputError("a range test needs a validation split: set data.val_size.")
        settings = {"model": self.model, "trainer": self.trainer}
        rows = train_through(settings, data, test, rates.steps, curves, ProgressLine("range"))
        proposals = {float(l2 or 0.0): propose(points) for l2, points in test.points.items()}
        with alone_in(self.output):
            write_rows(self.output / "range.csv", rows, append=False)
            network = network_name(self.model.get("hidden", 0))
            plot_range(rows, proposals, self.output / "range.png", name_of(data), network)
        print(format_proposals(test, proposals))
        print(f"range: {self.output} (range.csv, range.png)", flush=True)
        return proposals


def format_proposals(test: RangeTest, proposals: Mapping[float, Proposal]) -> str:
    """Return a line per λ, and the options for the λ with the lowest loss on validation."""
    lowest = {l2: min(p.loss for p in test.points[l2]) for l2 in proposals}
    cells = [
        [f"{l2:.3g}", f"{ends.base_lr:.3g}", f"{ends.max_lr:.3g}", f"{lowest[l2]:.4f}"]
        for l2, ends in proposals.items()
    ]
    ends = proposals[min(proposals, key=lambda l2: lowest[l2])]
    lines = [
        "base_lr: the loss has fallen 10 % of the way. max_lr: the loss is lowest.",
        *table(["l2", "base_lr", "max_lr", "lowest val loss"], cells),
        f"--schedule.base_lr {ends.base_lr:.3g} --schedule.max_lr {ends.max_lr:.3g}",
    ]
    return "\n".join(lines)

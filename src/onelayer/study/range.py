"""``onelayer range``: a learning rate range test, as a table, range.csv and range.png."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from onelayer.core.checks import check_whole
from onelayer.core.errors import InputError
from onelayer.data.adapter import has_split, name_of
from onelayer.study.data_settings import make_data
from onelayer.study.plots import describe, new_figure, save
from onelayer.study.runs import alone_in, make_trainer, sized
from onelayer.training.curves import Curves
from onelayer.training.divergence import Divergence
from onelayer.training.members import by_l2
from onelayer.training.module import OneLayer
from onelayer.training.progress import ProgressLine
from onelayer.training.range import Proposal, RangeTest, propose
from onelayer.training.records import Row, write_rows


@dataclass(frozen=True)
class Range:
    """A range test of one λ or of several at once.

    Args:
        model: arguments of OneLayer.
        data: settings of the data; there must be a validation split.
        output: folder for range.csv, as curves.csv, and range.png.
        min_lr: the first rate.
        max_lr: the last rate.
        steps: updates from the one to the other.
        points: measurements on the way.
        trainer: flags of the Trainer, such as precision.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    output: Path
    min_lr: float = 1e-5
    max_lr: float = 1.0
    steps: int = 500
    points: int = 50
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> dict[float, Proposal]:
        """Train, write both files and print what is proposed; a proposal for each λ.

        Raises:
            InputError: for an argument out of its range, or where no loss ever fell.
        """
        check_whole("points", self.points, 2, self.steps)
        test, curves = RangeTest(self.min_lr, self.max_lr, self.steps), Curves(self.points)
        data = make_data(self.data)
        model = OneLayer(**sized(self.model, data))
        if not has_split(data, "val"):
            raise InputError("a range test needs a validation split: set data.val_size.")
        callbacks = [test, curves, Divergence(stop=False), ProgressLine("range")]
        trainer = make_trainer(self.steps, callbacks, **self.trainer)
        trainer.fit(model, datamodule=data)
        proposals = {float(l2 or 0.0): propose(points) for l2, points in test.points.items()}
        with alone_in(self.output):
            write_rows(self.output / "range.csv", curves.rows, append=False)
            plot_range(curves.rows, proposals, self.output / "range.png", name_of(data))
        print(format_proposals(test, proposals))
        print(f"range: {self.output} (range.csv, range.png)", flush=True)
        return proposals


def format_proposals(test: RangeTest, proposals: Mapping[float, Proposal]) -> str:
    """A line per λ, and the options to type for the λ with the lowest loss on validation."""
    lowest = {l2: min(p.loss for p in test.points[l2]) for l2 in proposals}
    lines = [
        "base_lr: the loss has fallen by a tenth of all it falls. max_lr: it is lowest.",
        f"{'l2':>9} {'base_lr':>9} {'max_lr':>9} {'lowest val loss':>16}",
        *(
            f"{l2:>9.3g} {ends.base_lr:>9.3g} {ends.max_lr:>9.3g} {lowest[l2]:>16.4f}"
            for l2, ends in proposals.items()
        ),
    ]
    best = min(proposals, key=lambda l2: lowest[l2])
    ends = proposals[best]
    return "\n".join(
        [*lines, f"--schedule.base_lr {ends.base_lr:.3g} --schedule.max_lr {ends.max_lr:.3g}"]
    )


def plot_range(
    rows: list[Row], proposals: Mapping[float, Proposal], output: Path, dataset: str
) -> None:
    """Loss and accuracy on validation over the rate, a line per λ, with the proposed ends."""
    figure, axes = new_figure(1, 2, (11, 4.2))
    val = [row for row in rows if row.split == "val"]
    start = min(row.loss for row in val if row.step == 0)
    for (l2, places), colour in zip(
        by_l2([row.l2 for row in val]).items(), _colours(len(proposals)), strict=True
    ):
        own: dict[float, list[Row]] = {}
        for place in places:
            own.setdefault(val[place].lr, []).append(val[place])
        for axis, name, unit in zip(axes.flat, ("loss", "accuracy"), (1, 100), strict=True):
            mean = [fmean(unit * getattr(row, name) for row in group) for group in own.values()]
            axis.plot(list(own), mean, marker=".", color=colour, label=f"λ = {l2:.3g}")
            for rate in proposals[l2]:
                axis.axvline(rate, color=colour, linestyle=":", linewidth=1)
    for axis, label in zip(axes.flat, ("cross-entropy loss", "accuracy (%)"), strict=True):
        axis.set_xscale("log")
        axis.set_xlabel("learning rate η")
        axis.set_ylabel(f"{label}, validation")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0, 0].set_ylim(top=1.5 * start, bottom=0)
    title = describe("learning rate range test, proposed ends dotted", dataset, 0)
    figure.suptitle(title)
    save(figure, output)


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](i / max(count, 2)) for i in range(count)]

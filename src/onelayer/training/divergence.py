"""Divergence: networks whose cost is NaN or infinite, found in the records of Curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from onelayer.core.errors import DivergedError
from onelayer.training.folder import last_of, run_folder
from onelayer.training.observer import Observer
from onelayer.training.records import Row, diverged, is_finite

BLOWN_UP = 1000  # times the cost before training, at its end


class Divergence(Observer):
    """Names a network that has diverged, and stops the training when none is left.

    Members never influence each other, so a population goes on with the others; the diverged ones
    are left out of every mean and marked in tables and figures. It runs whenever Curves has
    measured, in any order of the callbacks. A warning names a network whose cost on training ends
    finite, but more than a thousand times as high as it began. That network still counts.

    Args:
        stop: whether to stop when every network has diverged, and to warn as above.

    Raises:
        DivergedError: naming member, update and learning rate.
    """

    def __init__(self, stop: bool = True) -> None:
        self.stop = stop
        self._named: set[int] = set()
        self._rows: list[Row] = []

    def on_measured(self, trainer: Trainer, pl_module: LightningModule, rows: list[Row]) -> None:
        """Judge the networks by their figures at this update."""
        if rows[-1].split == "test":
            return
        self._rows = rows
        latest = {row.member: row for row in rows if row.step == rows[-1].step}
        gone = diverged([row for row in rows if row.step == rows[-1].step])
        for member in sorted(gone - self._named):
            self._named.add(member)
            if len(gone) < len(latest):
                rank_zero_warn(
                    f"{describe(rows, member)}\nThe other networks go on; this one is "
                    "left out of every mean and marked as diverged."
                )
        if self.stop and len(gone) == len(latest):
            every = "" if len(latest) == 1 else f"all {len(latest)} networks have diverged.\n"
            raise DivergedError(
                f"{every}{describe(rows, min(gone))}\n"
                f"Lower schedule.max_lr (or model.lr) or model.l2.{_good_checkpoint(trainer)}"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn about networks that have blown up, though every figure is finite."""
        own = [row for row in self._rows if row.split == "train"] if self.stop else []
        starts, ends = ({row.member: row for row in rows} for rows in (own[::-1], own))
        for member, end in ends.items():
            start = starts[member]
            if is_finite(end) and end.cost > BLOWN_UP * start.cost:
                rank_zero_warn(
                    f"member {member} (l2={end.l2:g}, seed={end.seed}) has blown up: its train "
                    f"cost was {start.cost:.4g} and is {end.cost:.4g} after update {end.step}. It "
                    "still counts in every mean. Lower schedule.max_lr (or model.lr)."
                )


def _good_checkpoint(trainer: Trainer) -> str:
    folder = run_folder(trainer)
    last = last_of(folder) if folder else None
    return f"\nThe last good checkpoint is kept: {last}" if last and last.is_file() else ""


def describe(rows: Sequence[Row], member: int) -> str:
    """Describe where a member diverged: its name, the updates and the learning rates."""
    own = [row for row in rows if row.member == member and row.split != "test"]
    at = next(row for row in own if not is_finite(row))
    value = at.cost if not math.isfinite(at.cost) else at.loss
    before = [row for row in own if row.step < at.step and row.split == at.split]
    text = (
        f"diverged: member {member} (l2={at.l2:g}, seed={at.seed}): its {at.split} cost is {value} "
        f"after update {at.step}, at learning rate {at.lr:.4g}"
    )
    if before:
        last = before[-1]
        text += f" (after update {last.step} it was {last.cost:.4g}, at {last.lr:.4g})"
    return text + "."

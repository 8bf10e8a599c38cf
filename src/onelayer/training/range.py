"""RangeTest: the rates between which a cycle may run, found in one short run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer

from onelayer.core.checks import MOST_UPDATES, check_positive, check_whole
from onelayer.core.cycles import rising
from onelayer.core.errors import InputError
from onelayer.training.members import grouped
from onelayer.training.records import Row
from onelayer.training.schedule import ScheduledLR

RISEN = 4.0  # times the lowest loss, above which a range test is stopped
FALLEN = 0.1  # share of the total drop of the loss that defines base_lr
MEMORY = 0.9  # weight of the past in the running mean of batch losses


class Point(NamedTuple):
    """A rate, and the loss after an update at it."""

    lr: float
    loss: float


class Proposal(NamedTuple):
    """Ends of a cycle that a range test proposes."""

    base_lr: float
    max_lr: float


class RangeTest(ScheduledLR):
    """Learning rate range test (Smith, arXiv:1506.01186, section 3.3), for any LightningModule.

    The rate rises from ``min_lr`` to ``max_lr``, with equally many updates per decade. For a
    OneLayer the loss is that of each λ on the validation split, measured by Curves
    (``Curves(per_cycle=50)`` for 50 points). For another module it is the running mean of the loss
    of its batches. ``proposals`` has the ends of a cycle, see :func:`propose`. The run stops when
    every loss has risen to 4 times its lowest.

    Use it instead of TriangularLR, with ``Trainer(max_steps=steps)``, and for a OneLayer with
    ``Divergence(stop=False)``, because the largest rates are meant to diverge.

    Args:
        min_lr: the first rate, above 0.
        max_lr: the last rate.
        steps: updates from the one to the other.

    Raises:
        InputError: naming the argument and its range.
    """

    def __init__(self, min_lr: float = 1e-5, max_lr: float = 1.0, steps: int = 500) -> None:
        check_positive("min_lr", min_lr)
        check_positive("max_lr", max_lr)
        if min_lr >= max_lr:
            raise InputError(f"min_lr must be below max_lr, but {min_lr!r} >= {max_lr!r}.")
        check_whole("steps", steps, at_least=2, at_most=MOST_UPDATES)
        super().__init__(partial(rising, min_lr=min_lr, max_lr=max_lr, steps=steps))
        self.min_lr, self.max_lr, self.steps = min_lr, max_lr, steps
        self.cycle = steps  # Curves measures so many times in a cycle
        self.points: dict[float | None, list[Point]] = {}
        self._by_curves = False  # whether Curves measures, which a OneLayer has

    @property
    def proposals(self) -> dict[float | None, Proposal]:
        """The proposal for each λ; of another module than OneLayer for None."""
        return {l2: propose(points) for l2, points in self.points.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the arguments, for loggers."""
        return {name: getattr(self, name) for name in ("min_lr", "max_lr", "steps")}

    def on_measured(self, trainer: Trainer, pl_module: LightningModule, rows: list[Row]) -> None:
        """Note the loss of each λ: the mean over its seeds, infinite if one has diverged."""
        self._by_curves = True
        new = [row for row in rows if (row.step, row.split) == (rows[-1].step, "val")]
        for l2, own in grouped(new, attrgetter("l2")).items():
            losses = [row.loss for row in own]
            mean = math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.inf
            self._note(trainer, l2, mean)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss of the batch of another module, and set the next rate."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not self._by_curves and isinstance(loss, torch.Tensor):
            before = self.points.get(None, [])
            mean = float(loss)
            if before and before[-1].loss != math.inf:
                mean = MEMORY * before[-1].loss + (1 - MEMORY) * mean
            self._note(trainer, None, mean if math.isfinite(mean) else math.inf)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _note(self, trainer: Trainer, l2: float | None, loss: float) -> None:
        # The rate of the update just made.
        rate = self.rate(max(trainer.global_step - 1, 0))
        self.points.setdefault(l2, []).append(Point(rate, loss))
        if all(_has_risen(points) for points in self.points.values()):
            trainer.should_stop = True


def propose(points: Sequence[Point]) -> Proposal:
    """Return the ends of a cycle, from the loss at rising rates.

    ``max_lr`` is the rate at which the loss is lowest: at larger ones it rises again. ``base_lr``
    is the first rate at which the loss has fallen 10 % of the way.

    Raises:
        InputError: the loss never fell below its first value.

    >>> rates, losses = (0.001, 0.01, 0.1, 1.0), (2.3, 2.0, 1.5, 4.0)
    >>> propose([Point(*pair) for pair in zip(rates, losses)])
    Proposal(base_lr=0.01, max_lr=0.1)
    """
    lowest = min(points, key=lambda point: point.loss)
    first = points[0].loss
    if not lowest.loss < first:
        raise InputError(
            "the loss never fell: try a smaller min_lr, or more steps of the range test."
        )
    enough = first - FALLEN * (first - lowest.loss)
    base = next(point.lr for point in points if point.loss <= enough)
    return Proposal(min(base, lowest.lr), lowest.lr)


def _has_risen(points: Sequence[Point]) -> bool:
    return points[-1].loss > RISEN * min(point.loss for point in points)

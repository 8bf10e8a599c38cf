"""Observer: a callback that says when it must run; updates before may be made in a block."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from onelayer.training.records import Row

USUAL_LR = 0.01  # a OneLayer's learning rate if no schedule sets it


class Observer(Callback):
    """A callback that says at which update it must run next, by default at none.

    Its ``on_train_batch_end`` runs at that update at the latest, with the batch of that update;
    updates before it may be made in one block. A callback that is no Observer, and overrides a hook
    of every batch, sees every batch.
    """

    cycle: int | None = None
    """Updates in one cycle of the rate, where this callback sets one that cycles."""
    measured_rows: int | None = None
    """Rows of the training split that measurements on the way are of, where it takes some."""
    logs_test_figures = False
    """Whether it writes the figures of the test split to the loggers in the module's stead."""

    def __repr__(self) -> str:
        """The class and its arguments."""
        names = [name for name in signature(type(self)).parameters if hasattr(self, name)]
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({given})"

    def next_due(self, step: int) -> float:
        """The first update after ``step`` updates that must end a block; infinity for none."""
        return math.inf

    def rate(self, step: int) -> float | None:
        """The learning rate of the update after ``step`` updates, where this callback sets it."""
        return None

    def draws(self, logger: Logger) -> bool:
        """Whether it writes measurements and test figures to this logger, in its own way."""
        return False

    def networks(self, trainer: Trainer, pl_module: LightningModule) -> list[LightningModule]:
        """Other networks of this training, whose ensembles are measured beside its own."""
        return []

    def on_measured(self, trainer: Trainer, pl_module: LightningModule, rows: list[Row]) -> None:
        """Called when splits have been measured; ``rows`` are all so far, the new ones last."""

    def on_summary(self, trainer: Trainer, summary: dict[str, Any]) -> None:
        """Called when a run ends with this summary, and again when it has test figures."""

    def on_report(self, trainer: Trainer, report: dict[str, Any], folder: Path) -> None:
        """Called when the test split has been looked at, with what the folder's test.json holds."""


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """A trainer's callbacks, which Lightning does not declare as an attribute."""
    return cast(Any, trainer).callbacks  # type: ignore[no-any-return]


def observers(trainer: Trainer) -> list[Observer]:
    """The Observers among a trainer's callbacks."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, Observer)]


def others(trainer: Trainer) -> list[Logger]:
    """The loggers to which no Observer writes in its own way."""
    seen = observers(trainer)
    return [logger for logger in trainer.loggers if not any(o.draws(logger) for o in seen)]


def last_update(trainer: Trainer) -> float:
    """Return the update that ends the fit; infinity or -1 if it is unknown."""
    with suppress(MisconfigurationException):  # Lightning cannot tell where accumulation changes
        return trainer.estimated_stepping_batches
    return trainer.max_steps


def scheduled_rate(observers: Iterable[Observer], step: int) -> float | None:
    """The rate that one of them sets for the update after ``step``; None where none does."""
    rates = (observer.rate(step) for observer in observers)
    return next((rate for rate in rates if rate is not None), None)

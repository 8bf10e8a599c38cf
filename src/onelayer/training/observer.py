"""Observer: a callback that names the update at which it must run next."""

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
    """A callback that names the update at which it must run next; by default none.

    Its ``on_train_batch_end`` runs at that update at the latest, with the batch of that update.
    Updates before it may run in one block. A callback that is not an Observer and overrides a hook
    of batches gets every batch.
    """

    cycle: int | None = None
    """Updates per cycle, if this callback sets a rate that has cycles."""
    measured_rows: int | None = None
    """Number of training samples in intermediate measurements; None for all."""
    logs_test_figures = False
    """Whether this callback logs test metrics instead of the module."""

    def __repr__(self) -> str:
        """Return the class and its arguments."""
        names = [name for name in signature(type(self)).parameters if hasattr(self, name)]
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({given})"

    def next_due(self, step: int) -> float:
        """Return the first update after ``step`` that must end a block; infinity for none."""
        return math.inf

    def rate(self, step: int) -> float | None:
        """Return the rate of the update after ``step`` updates, if this callback sets it."""
        return None

    def draws(self, logger: Logger) -> bool:
        """Return whether this callback writes measurements and test metrics to a logger itself."""
        return False

    def networks(self, trainer: Trainer, pl_module: LightningModule) -> list[LightningModule]:
        """Return other networks of this fit, whose ensembles are measured as well."""
        return []

    def on_measured(self, trainer: Trainer, pl_module: LightningModule, rows: list[Row]) -> None:
        """Run when splits have been measured; ``rows`` are all records, the new ones last."""

    def on_summary(self, trainer: Trainer, summary: dict[str, Any]) -> None:
        """Run when a run ends with this summary, and again when it has test metrics."""

    def on_report(self, trainer: Trainer, report: dict[str, Any], folder: Path) -> None:
        """Run when the test split has been evaluated, with the content of test.json."""


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a trainer's callbacks, which Lightning does not declare as an attribute."""
    return cast(Any, trainer).callbacks  # type: ignore[no-any-return]


def observers(trainer: Trainer) -> list[Observer]:
    """Return the Observers among a trainer's callbacks."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, Observer)]


def others(trainer: Trainer) -> list[Logger]:
    """Return the loggers to which no Observer writes in its own way."""
    seen = observers(trainer)
    return [logger for logger in trainer.loggers if not any(o.draws(logger) for o in seen)]


def last_update(trainer: Trainer) -> float:
    """Return the update that ends the fit; infinity or -1 if it is unknown."""
    with suppress(MisconfigurationException):  # Lightning does not know it if accumulation changes
        return trainer.estimated_stepping_batches
    return trainer.max_steps


def scheduled_rate(observers: Iterable[Observer], step: int) -> float | None:
    """Return the rate that an observer sets for the update after ``step``; None if none does."""
    rates = (observer.rate(step) for observer in observers)
    return next((rate for rate in rates if rate is not None), None)

"""Curves: cost, loss and accuracy of both splits at the same updates."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng

from onelayer.core.checks import check_whole
from onelayer.data.adapter import batches, count_loaders, has_loader, weighted
from onelayer.data.features import SomeRows
from onelayer.data.random import permutation
from onelayer.data.split import Split, Splits
from onelayer.training.blocks import overrides
from onelayer.training.folder import run_folder
from onelayer.training.observer import (
    Observer,
    callbacks_of,
    last_update,
    observers,
    others,
    scheduled_rate,
)
from onelayer.training.records import Row, quantities, restored_rows, values_of, write_rows
from onelayer.training.resume import stopped_by

LEAST_ROWS = 1000  # samples of the training split measured on the way, at least
ROWS = (0, 0, 1)  # seed and stream of their order, which no epoch has
MODULE_HOOKS = (
    "validation_step",
    "on_validation_start",
    "on_validation_end",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
)
CALLBACK_HOOKS = (*MODULE_HOOKS[1:], "on_sanity_check_start", "on_sanity_check_end")
DEFAULTS = {  # of the Trainer's flags of validation
    "val_check_interval": 1.0,
    "check_val_every_n_epoch": 1,
    "limit_val_batches": 1.0,
    "overfit_batches": 0.0,
    "fast_dev_run": False,
}


class Curves(Observer):
    """Measures both splits, writes curves.csv, logs ``train/…`` and ``val/…``.

    The splits come from the data module; if it has no ``tensors``, from its loaders. The first
    measurement, before the first update, and the last one use complete splits. Between them the
    cost of measuring is kept in proportion to training. The training split is then measured on the
    same random samples each time: at most ``train_rows``, at most a third of those trained on since
    the last measurement, and at least 1,000.

    Loggers and monitors get the metrics of the λ that is now best on validation, averaged over its
    seeds (:meth:`OneLayer.headline`). curves.csv has every member. Members that have diverged are
    left out of means. Lightning's own validation is skipped unless a flag, hook or monitor needs it
    (:func:`is_wanted`).

    A callback that monitors ``train/…`` or ``val/…`` finds current metrics: the splits are also
    measured when a ModelCheckpoint compares them, and at the end of an epoch if something monitors
    ``train/…``.

    Args:
        per_cycle: measurements per cycle of the rate, evenly spaced.
        per_epoch: measurements per epoch if the rate has no cycles.
        train_rows: largest number of training samples measured between the first and the last
            measurement; None for all.
    """

    def __init__(
        self, per_cycle: int = 10, per_epoch: int = 1, train_rows: int | None = 10_000
    ) -> None:
        check_whole("per_cycle", per_cycle, at_least=1)
        check_whole("per_epoch", per_epoch, at_least=1)
        if train_rows is not None:
            check_whole("train_rows", train_rows, at_least=1)
        self.per_cycle, self.per_epoch, self.train_rows = per_cycle, per_epoch, train_rows
        self._some: torch.Tensor | int | None = None  # samples measured on the way; None for all
        self._partial = False  # whether the last measurement used these
        self.rows: list[Row] = []
        self._period: tuple[int, int] | None = (1, 1)  # updates, and measurements among them
        self._last: float = -1
        self._monitored: list[Any] = []  # callbacks that monitor train/… or val/…
        self._limit_val_batches: float | None = None
        self._trained = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Skip Lightning's validation unless something needs it."""
        self._monitored = [
            c for c in callbacks_of(trainer) if monitored(c).startswith(("train/", "val/"))
        ]
        data = cast(Any, trainer).datamodule
        wanted = is_wanted(trainer, pl_module)
        if _is_measured(trainer, pl_module) and not wanted and not _several(data):
            self._limit_val_batches = cast(Any, trainer).limit_val_batches
            cast(Any, trainer).limit_val_batches = 0

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore Lightning's validation for ``trainer.validate``."""
        if self._limit_val_batches is not None:
            cast(Any, trainer).limit_val_batches = self._limit_val_batches
            self._limit_val_batches = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure once before the first update."""
        cycle = next((o.cycle for o in observers(trainer) if o.cycle), None)
        batches = trainer.num_training_batches
        if cycle is not None:
            self._period = (cycle, self.per_cycle)
        elif batches != math.inf:
            updates = math.ceil(batches / trainer.accumulate_grad_batches)
            self._period = (updates, self.per_epoch)
        else:
            self._period = None  # the length of an epoch is unknown
        self._last = last_update(trainer)
        self._some = self._draw_rows(trainer, pl_module)
        self.measured_rows = len(self._some) if isinstance(self._some, torch.Tensor) else self._some
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)
            return
        self._extend(trainer, pl_module)
        if self.rows and trainer.is_global_zero and (folder := run_folder(trainer)):
            # resumed: drop what was written after the checkpoint
            write_rows(folder / "curves.csv", self.rows, append=False)

    def _extend(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the end of the previous fit like any other update of an extended run.

        Loggers cannot remove a value, so they keep the one logged at that end.
        """
        step = trainer.global_step
        due = self.next_due(step - 1) == step
        if not self.rows or self.rows[-1].step != step:
            if due:  # an exception of another callback came first
                self._measure(trainer, pl_module, whole=step == self._last)
            return
        if step == self._last or stopped_by(trainer):
            return
        due |= self._ends_epoch(trainer, step)
        if due and (self._partial or self._some is None):
            return
        self.rows = [row for row in self.rows if row.step != step]
        self._partial = self._some is not None
        if due:
            figures = self._figures(trainer, pl_module, self._some)
            for split, values in figures.items():
                self.rows += self._rows_of(trainer, pl_module, split, values)

    def _ends_epoch(self, trainer: Trainer, step: int) -> bool:
        """Return whether this update ended an epoch whose end is measured."""
        batches = trainer.num_training_batches
        if self._period is None or batches == math.inf:
            return self._period is None
        updates = math.ceil(batches / trainer.accumulate_grad_batches)
        return self._monitors_train and step % updates == 0

    @property
    def _monitors_train(self) -> bool:
        return any(monitored(c).startswith("train/") for c in self._monitored)

    def next_due(self, step: int) -> float:
        """Return the first measured update after ``step``: i/per_cycle of a cycle, rounded up."""
        due = math.inf
        if self._period:
            length, parts = self._period
            cycle, within = divmod(step, length)
            i = within * parts // length + 1
            due = cycle * length - (-i * length // parts)
        for callback in self._monitored:
            if isinstance(callback, ModelCheckpoint) and (every := callback._every_n_train_steps):
                due = min(due, (step // every + 1) * every)
        return min(due, self._last) if self._last > step else due

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if ``next_due`` is now."""
        step = trainer.global_step
        if self.next_due(step - 1) == step:
            self._measure(trainer, pl_module, whole=step == self._last)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure for monitors: Lightning runs them after all other callbacks."""
        if self._period is None or self._monitors_train:
            self._measure(trainer, pl_module, whole=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last update, whatever ended the run."""
        self._measure(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the metrics of a following test join this fit's records."""
        self._trained = True

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the metrics of the test split to the records of the fit."""
        if self._trained:
            module = cast(Any, pl_module)
            self.rows = [row for row in self.rows if row.split != "test"]  # of an earlier test
            self._add(trainer, pl_module, {"test": module.figures(module.measured)})

    def _draw_rows(self, trainer: Trainer, pl_module: LightningModule) -> torch.Tensor | int | None:
        """Return the training samples that are measured on the way; None for all of them.

        For a data module without tensors, return how many of its loader's first samples.
        """
        if self.train_rows is None or not _is_measured(trainer, pl_module):
            return None
        data = cast(Any, trainer).datamodule
        if not isinstance(data, Splits):
            return self.train_rows
        X, _ = data.tensors("train")  # type: ignore[misc]  # there is one: it is trained on
        share = 1.0  # of the training split used between two measurements
        if self._period:
            length, parts = self._period
            share = length / parts * trainer.accumulate_grad_batches / trainer.num_training_batches
        count = min(self.train_rows, max(LEAST_ROWS, int(share * len(X) / 3)))
        if count >= len(X):
            return None
        rows = torch.from_numpy(permutation(len(X), *ROWS))[:count]
        return rows.sort().values.to(X.device)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, whole: bool = True) -> None:
        """Measure both splits, unless this update has been measured."""
        step = trainer.global_step
        measured = self.rows[-1].step if self.rows else -1
        again = measured == step and whole and self._partial  # the fit ended early
        if not _is_measured(trainer, pl_module) or (measured == step and not again):
            return
        if again:
            self.rows = [row for row in self.rows if row.step != step]
        some = None if whole else self._some
        self._partial = some is not None
        self._add(trainer, pl_module, self._figures(trainer, pl_module, some), again)

    def _figures(self, trainer: Trainer, pl_module: LightningModule, some: Any) -> dict[str, Any]:
        """Return metrics (m,) of both splits, over ``some`` samples of the training split."""
        figures = {
            "train": figures_of(trainer, pl_module, "train", some),
            "val": figures_of(trainer, pl_module, "val"),
        }
        return {split: values for split, values in figures.items() if values is not None}

    def _add(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        figures: dict[str, dict[str, Any]],
        again: bool = False,
    ) -> None:
        """Record the metrics (m,) of splits at this update, and publish them.

        Loggers cannot take a value back: they get none ``again`` for the same update.
        """
        new = [
            row
            for split, values in figures.items()
            for row in self._rows_of(trainer, pl_module, split, values)
        ]
        self.rows += new
        module = cast(Any, pl_module)
        if "val" in figures:
            module.validated(figures["val"])
        means = {
            f"{split}/{name}": value.cpu()  # in host memory: the progress bar reads them
            for split, values in figures.items()
            for name, value in module.headline(values).items()
        }
        self._show(trainer, means, log=not again)
        if trainer.is_global_zero and (folder := run_folder(trainer)):
            append = not again and "test" not in figures and len(self.rows) > len(new)
            write_rows(folder / "curves.csv", new if append else self.rows, append=append)
        for observer in observers(trainer):
            observer.on_measured(trainer, pl_module, self.rows)

    def _rows_of(
        self, trainer: Trainer, pl_module: LightningModule, split: str, figures: dict[str, Any]
    ) -> Iterator[Row]:
        step = trainer.global_step
        rate = scheduled_rate(observers(trainer), step)
        lr = float(cast(Any, pl_module).lr) if rate is None else rate
        values = zip(*(figures[name].tolist() for name in quantities(figures)), strict=True)
        members = cast(Any, pl_module).members
        for i, (member, numbers) in enumerate(zip(members, values, strict=True)):
            yield Row(step, split, i, member.l2, member.seed, lr, *numbers)

    def _show(self, trainer: Trainer, means: dict[str, torch.Tensor], log: bool) -> None:
        """Pass means to monitors, the progress bar and, except for a test, the loggers."""
        trainer.callback_metrics.update(means)
        logged = {name: v for name, v in means.items() if not name.startswith("test/")}
        trainer.logged_metrics.update(logged)
        accuracies = {n: round(float(v), 4) for n, v in logged.items() if n.endswith("accuracy")}
        trainer.progress_bar_metrics.update(accuracies)
        if log and logged and trainer.is_global_zero:
            for logger in others(trainer):
                logger.log_metrics({n: float(v) for n, v in logged.items()}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the records so far, as plain tuples (checkpoints load with weights_only=True)."""
        return {"rows": [values_of(row) for row in self.rows], "partial": self._partial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the records of the resumed run."""
        self.rows = restored_rows(state_dict.get("rows"))
        self._partial = state_dict.get("partial") is True


def is_wanted(trainer: Any, module: Any) -> bool:
    """Return whether something needs Lightning's validation beside the curves.

    That is: a flag of validation is set, a subclass has a validation step or hook, a callback has
    a hook of validation or monitors a metric other than Curves' ``train/…``, or a scheduler of the
    learning rate monitors one.
    """
    return (
        any(getattr(trainer, name, None) != value for name, value in DEFAULTS.items())
        or bool(module.overridden(MODULE_HOOKS))
        or any(_wants_validation(callback) for callback in trainer.callbacks)
        or any(config.monitor for config in trainer.lr_scheduler_configs)
    )


def monitored(callback: Any) -> str:
    """Return the metric that a callback monitors, or ""."""
    monitor = getattr(callback, "monitor", None)
    return monitor if isinstance(monitor, str) else ""


def _wants_validation(callback: Any) -> bool:
    figure = monitored(callback)
    waits = isinstance(callback, ModelCheckpoint) and callback._save_on_train_epoch_end is False
    watches = figure != "" and not figure.startswith("train/")
    return watches or waits or overrides(callback, CALLBACK_HOOKS)


def _several(data: Any) -> bool:
    """Return whether there are several validation loaders; Lightning logs the others."""
    return not isinstance(data, Splits) and count_loaders(data, "val") > 1


def _is_measured(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Return whether there is a data module to measure with, by tensors or loaders."""
    data = cast(Any, trainer).datamodule
    if data is None:
        return False
    own = cast(Any, pl_module).overridden(("training_step", "validation_step"))
    return isinstance(data, Splits) or (has_loader(data, "train") and not own)


def figures_of(trainer: Trainer, module: Any, split: Split, some: Any = None) -> Any:
    """Return metrics (m,) of a module over a split or ``some`` of its samples; None without any."""
    data = cast(Any, trainer).datamodule
    if not _is_measured(trainer, module):
        return None
    return (_by_tensors if isinstance(data, Splits) else _by_loaders)(module, data, split, some)


def _by_tensors(module: Any, data: Any, split: Split, some: torch.Tensor | None) -> Any:
    """Return metrics (m,) over a split in memory, or some of its samples; None if it is empty."""
    samples = weighted(data, split)
    if samples is None:
        return None
    X, y, weight = samples
    if some is not None:
        X, y, weight = SomeRows(X, some), y[some], None if weight is None else weight[some]
    # A subclass's evaluate needs no argument for weights that there are not.
    return module.evaluate(X, y, *(() if weight is None else (weight,)))


def _by_loaders(module: Any, data: Any, split: Split, rows: int | None) -> Any:
    """Return metrics (m,) over the batches of a data module's own loader, or the first ones."""
    if not has_loader(data, split):
        return None
    with isolate_rng():  # a loader that shuffles must not change what is trained on next
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(0)  # the same rows at every measurement
        return module.evaluate_batches(batches(data, split, rows))

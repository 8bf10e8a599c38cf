"""Curves: cost, loss and accuracy of training and validation split at the same updates."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from onelayer.core.checks import check_whole
from onelayer.core.errors import InputError
from onelayer.training.folder import run_folder
from onelayer.training.measure import QUANTITIES, mean_of_finite
from onelayer.training.schedule import TriangularLR

CHARTS = {
    quantity: {quantity: ["Multiline", [f"train/{quantity}", f"val/{quantity}"]]}
    for quantity in QUANTITIES
}
"""TensorBoard's custom scalars: training and validation of one quantity in one chart."""


class Row(NamedTuple):
    """One line of curves.csv: the figures of one member over one split after ``step`` updates."""

    step: int
    split: str
    member: int
    l2: float
    seed: int
    lr: float
    cost: float
    loss: float
    accuracy: float


def is_finite(row: Row) -> bool:
    """Whether the member has not diverged."""
    return math.isfinite(row.cost) and math.isfinite(row.loss)


class Curves(Callback):
    """Measures both splits, writes curves.csv and TensorBoard, logs ``train/…`` and ``val/…``.

    The splits come whole from the data module; the first look is before the first update. What is
    logged for a population is the mean over its members that have not diverged; curves.csv has
    every member.

    Args:
        per_cycle: looks per cycle of TriangularLR, evenly spaced; without one, looks per epoch
            are ``per_epoch``.
        per_epoch: looks per epoch where no TriangularLR is there.
    """

    def __init__(self, per_cycle: int = 10, per_epoch: int = 1) -> None:
        check_whole("per_cycle", per_cycle, at_least=1)
        check_whole("per_epoch", per_epoch, at_least=1)
        self.per_cycle, self.per_epoch = per_cycle, per_epoch
        self.rows: list[Row] = []
        self._period = (1, 1)
        self._last = -1
        self._fixed_lr = 0.0
        self._schedule: TriangularLR | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the measuring to this callback: no second pass by Lightning's validation loop."""
        schedules = [c for c in trainer.callbacks if isinstance(c, TriangularLR)]  # type: ignore[attr-defined]
        self._schedule = schedules[0] if schedules else None
        self._fixed_lr = float(pl_module.hparams.get("lr", 0.0))
        if stage == "fit" and _has_splits(trainer):
            _refuse_what_curves_replace(trainer)
            self._limit_val_batches = trainer.limit_val_batches
            trainer.limit_val_batches = 0

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give Lightning's validation loop back to ``trainer.validate``."""
        if hasattr(self, "_limit_val_batches"):
            trainer.limit_val_batches = self._limit_val_batches
            del self._limit_val_batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once before the first update."""
        if self._schedule:
            self._period = (self._schedule.cycle, self.per_cycle)
        else:
            self._period = (len(cast(Any, trainer.train_dataloader)), self.per_epoch)
        self._last = trainer.max_steps
        if trainer.is_global_zero and not self.rows:
            for logger in _tensorboards(trainer):
                logger.experiment.add_custom_scalars(CHARTS)
        if trainer.global_step == 0:
            self._look(trainer, pl_module)
        elif self.rows and (folder := run_folder(trainer)):
            # resumed: what was written after the checkpoint goes
            write_rows(folder / "curves.csv", self.rows, append=False)

    def next_look(self, step: int) -> int | None:
        """The first update after ``step`` that is measured: i/per_cycle of a cycle, rounded up."""
        length, parts = self._period
        cycle, within = divmod(step, length)
        i = within * parts // length + 1
        look = cycle * length + -(-i * length // parts)
        return min(look, self._last) if self._last > step else look

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look where ``next_look`` said."""
        step = trainer.global_step
        if self.next_look(step - 1) == step:
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last update is always measured, whatever ended the training."""
        if self.rows and self.rows[-1].step != trainer.global_step:
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _has_splits(trainer):
            return
        for split in ("train", "val"):
            tensors = trainer.datamodule.tensors(split)  # type: ignore[attr-defined]
            if tensors is not None:
                self.add(trainer, pl_module, split, cast(Any, pl_module).evaluate(*tensors))

    def add(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        split: str,
        figures: dict[str, torch.Tensor],
    ) -> None:
        """Add the figures (m,) of a split at this update, to the rows and to every logger."""
        step = trainer.global_step
        lr = self._schedule.rate(step) if self._schedule else self._fixed_lr
        values = zip(*(figures[quantity].tolist() for quantity in QUANTITIES), strict=True)
        members = cast(Any, pl_module).members
        new = [
            Row(step, split, i, member.l2, member.seed, lr, *numbers)
            for i, (member, numbers) in enumerate(zip(members, values, strict=True))
        ]
        if split == "test":
            self.rows = [row for row in self.rows if row.split != "test"]
        self.rows += new
        # In host memory: the progress bar reads them after every block.
        means = {f"{split}/{name}": v.cpu() for name, v in mean_of_finite(figures).items()}
        trainer.callback_metrics.update(means)  # what EarlyStopping and ModelCheckpoint monitor
        if not trainer.is_global_zero:
            return
        if split != "test":  # Results logs those
            for logger in trainer.loggers:
                logger.log_metrics({name: float(v) for name, v in means.items()}, step)
        if folder := run_folder(trainer):
            # a second test replaces the first
            whole = split == "test" or len(self.rows) == len(new)
            write_rows(folder / "curves.csv", self.rows if whole else new, append=not whole)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, as plain tuples (checkpoints load with weights_only=True)."""
        return {"rows": [tuple(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The rows of the run that is resumed."""
        self.rows = [Row(*row) for row in state_dict["rows"]]


def _refuse_what_curves_replace(trainer: Any) -> None:
    """Options of the Trainer that would have no effect."""
    if trainer.fast_dev_run or trainer.overfit_batches:  # Lightning sets some of them then
        return
    for name, usual in (
        ("limit_val_batches", 1.0),
        ("val_check_interval", 1.0),
        ("check_val_every_n_epoch", 1),
    ):
        value = getattr(trainer, name)
        if value != usual:
            raise InputError(
                f"trainer.{name} = {value} would have no effect: all of both splits is measured "
                "wherever curves.per_cycle says.\nUse that, or data.val_size, instead."
            )


def _has_splits(trainer: Trainer) -> bool:
    return hasattr(getattr(trainer, "datamodule", None), "tensors")


def _tensorboards(trainer: Trainer) -> Iterator[TensorBoardLogger]:
    return (logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


@rank_zero_only
def write_rows(path: Path, rows: Iterable[Row], append: bool) -> None:
    """Write or append rows to a curves.csv; numbers in full, so that they read back exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", newline="") as file:
        writer = csv.writer(file)
        if not append:
            writer.writerow(Row._fields)
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a curves.csv.

    Raises:
        InputError: there is no such file, or it is not whole; naming the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the curves {path}: {error}.") from error
    header, *lines = text.splitlines() or [""]
    if header != ",".join(Row._fields):
        raise InputError(
            f"{path} is not a curves.csv: its first line is {header[:80]!r}, and it must be\n"
            f"{','.join(Row._fields)}"
        )
    if not lines:
        raise InputError(f"{path} has no figures: nothing stands below its first line.")
    if not text.endswith("\n"):  # a number cut short is a number still
        raise InputError(f"{path} is cut short: its last line, {len(lines) + 1}, is not whole.")
    return [_row(f"{path}, line {i}", line) for i, line in enumerate(lines, start=2)]


def _row(where: str, line: str) -> Row:
    kinds: list[Any] = [int, str, int, float, int, float, float, float, float]
    try:
        return Row(*(kind(value) for kind, value in zip(kinds, line.split(","), strict=True)))
    except ValueError as error:
        raise InputError(
            f"{where}: {line[:80]!r} is not\n{','.join(Row._fields)}\nThe file is damaged."
        ) from error


def last_figures(rows: Sequence[Row], split: str) -> list[Row]:
    """The rows of ``split`` at its last look, one per member."""
    rows = [row for row in rows if row.split == split]
    return [row for row in rows if row.step == rows[-1].step]

"""One training from start to figures, in a folder of its own that a kill cannot spoil."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer

from onelayer.data.adapter import count_batches, has_split, sizes
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.locks import alone
from onelayer.study.data_settings import make_data, write_config
from onelayer.study.plots import PlotCurves
from onelayer.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from onelayer.training.curves import Curves
from onelayer.training.folder import AGAIN, last_of
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.saving import Checkpoints, Snapshots
from onelayer.training.schedule import TriangularLR, step_size_for
from onelayer.training.trainer import progress_lines, run_logger, trainer_defaults

Settings = Mapping[str, Any]
"""Of a training: arguments of OneLayer, CIFAR10DataModule and TriangularLR under model, data and
schedule; of Curves, Results and Snapshots under curves, test and snapshots, where there are any;
and under trainer flags of the Trainer, such as precision, and max_steps where that is not the
schedule's whole cycles. Under data also ``class_path`` and ``init_args``, or a data module."""


def check_training(settings: Settings) -> None:
    """Raise :class:`InputError` for settings that training would refuse."""
    data = make_data(settings["data"])
    OneLayer(**sized(settings["model"], data))
    if check := getattr(data, "check_batch_size", None):
        check()
    TriangularLR(**settings["schedule"])


def sized(model: Mapping[str, Any], data: LightningDataModule) -> dict[str, Any]:
    """The arguments of OneLayer, with d and k of the data where they are not given."""
    if {"inputs", "classes"} <= model.keys():
        return dict(model)
    return dict(zip(("inputs", "classes"), sizes(data), strict=True)) | dict(model)


def with_length(schedule: Mapping[str, Any], data: LightningDataModule) -> dict[str, Any]:
    """Return the arguments of TriangularLR, with an n_s that suits data of one's own."""
    if schedule.get("step_size") is not None or isinstance(data, CIFAR10DataModule):
        return dict(schedule)
    return {**schedule, "step_size": step_size_for(count_batches(data), schedule.get("cycles", 1))}


def make_trainer(
    max_steps: int, callbacks: Sequence[Callback], logger: Any = False, **flags: Any
) -> Trainer:
    """A Trainer for one population."""
    return Trainer(
        **trainer_defaults(),
        max_steps=max_steps,
        callbacks=[*callbacks, *progress_lines(callbacks, flags)],
        logger=logger,
        plugins=[AtomicCheckpointIO(AGAIN)],
        enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
        **flags,
    )


def train_and_test(settings: Settings, folder: str | Path, title: str = "") -> dict[str, Any]:
    """Train, or go on where a kill left it, measure the test split once, draw the curves.

    Args:
        settings: of the training.
        folder: of the run.
        title: of its figure; the folder by default.

    Returns:
        What summary.json holds.
    """
    gc.collect()  # trainer, module and data refer to each other: the last run's images go now
    data = make_data(settings["data"])
    model = OneLayer(**sized(settings["model"], data))
    rates = TriangularLR(**with_length(settings["schedule"], data))
    results = Results(**settings.get("test", {}))
    curves = Curves(**settings.get("curves", {}))
    folder = Path(folder)
    last = last_of(folder)
    # Without a checkpoint nothing counts of what a killed start may have left, step 0 included.
    resumed = int(read_checkpoint(last)["global_step"]) if last.is_file() else -1
    logger = run_logger(folder, folder.parent, resumed)
    flags = {"max_steps": rates.total_steps, **settings.get("trainer", {})}
    callbacks = [
        rates,
        results,
        curves,
        PlotCurves(title),
        Snapshots(**settings.get("snapshots", {"last": 0})),
        Checkpoints(),
        *progress_lines((), settings.get("trainer", {})),
    ]
    trainer = make_trainer(flags.pop("max_steps"), callbacks, logger, **flags)
    write_config(folder, settings)
    trainer.fit(model, datamodule=data, ckpt_path=last if resumed >= 0 else None)
    if not results.finished and has_split(data, "test"):
        trainer.test(model, datamodule=data, verbose=False)
    assert results.summary is not None
    return results.summary


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from writing the files of a folder meanwhile."""
    return alone(folder / ".lock", f"another process writes {folder}: waiting for it")

"""One training from start to figures, in a folder of its own that a kill cannot spoil."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from onelayer.data.datamodule import CIFAR10DataModule
from onelayer.data.locks import alone
from onelayer.study.plots import PlotCurves
from onelayer.training.checkpoint import AtomicCheckpointIO, Checkpoints, read_checkpoint
from onelayer.training.curves import Curves
from onelayer.training.folder import last_of
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.schedule import TriangularLR
from onelayer.training.trainer import run_logger, trainer_defaults

Settings = Mapping[str, Mapping[str, Any]]
"""Of a training: arguments of OneLayer, CIFAR10DataModule and TriangularLR under model, data and
schedule, of Curves under curves, and under trainer max_steps, where that is not the schedule's
whole cycles."""


def check_training(settings: Settings) -> None:
    """Raise :class:`InputError` for settings that training would refuse."""
    OneLayer(**settings["model"])
    CIFAR10DataModule(**settings["data"]).check_batch_size()
    TriangularLR(**settings["schedule"])


def make_trainer(
    max_steps: int, callbacks: Sequence[Callback], logger: Any = False, **flags: Any
) -> Trainer:
    """A Trainer for one population."""
    return Trainer(
        **trainer_defaults(),
        max_steps=max_steps,
        callbacks=list(callbacks),
        logger=logger,
        plugins=[AtomicCheckpointIO()],
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
    model, data = OneLayer(**settings["model"]), CIFAR10DataModule(**settings["data"])
    rates, results = TriangularLR(**settings["schedule"]), Results()
    curves = Curves(**settings.get("curves", {}))
    folder = Path(folder)
    last = last_of(folder)
    # Without a checkpoint nothing counts of what a killed start may have left, step 0 included.
    resumed = int(read_checkpoint(last)["global_step"]) if last.is_file() else -1
    logger = run_logger(folder, folder.parent, resumed)
    max_steps = settings.get("trainer", {}).get("max_steps", rates.total_steps)
    callbacks = [rates, results, curves, PlotCurves(title), Checkpoints()]
    trainer = make_trainer(max_steps, callbacks, logger)
    trainer.fit(model, datamodule=data, ckpt_path=last if resumed >= 0 else None)
    if not results.finished:
        trainer.test(model, datamodule=data, verbose=False)
    assert results.summary is not None
    return results.summary


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from writing the files of a folder meanwhile."""
    return alone(folder / ".lock", f"another process writes {folder}: waiting for it")

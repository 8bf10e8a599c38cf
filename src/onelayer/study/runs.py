"""One training from start to figures, in a folder of its own that a kill cannot spoil."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from onelayer._compat import accelerator
from onelayer.data.datamodule import CIFAR10DataModule
from onelayer.study.plots import plot_curves
from onelayer.training.checkpoint import AtomicCheckpointIO, Checkpoints, last_of, read_checkpoint
from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.schedule import TriangularLR


def make_trainer(max_steps: int, callbacks: Sequence[Callback], logger: Any = False) -> Trainer:
    """A Trainer for one population."""
    return Trainer(
        accelerator=accelerator(),
        devices=1,
        max_steps=max_steps,
        callbacks=list(callbacks),
        logger=logger,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
        enable_model_summary=False,
    )


def train_and_test(
    model: OneLayer,
    data: Mapping[str, Any],
    schedule: Mapping[str, Any],
    folder: Path,
    title: str,
    max_steps: int | None = None,
) -> dict[str, Any]:
    """Train, or go on where a kill left it, measure the test split once, draw the curves.

    Args:
        model: the networks.
        data: arguments of CIFAR10DataModule.
        schedule: arguments of TriangularLR.
        folder: of the run.
        title: of its figure.
        max_steps: updates, where they are not the schedule's whole cycles.

    Returns:
        What summary.json holds.
    """
    gc.collect()  # trainer, module and data refer to each other: the last run's images go now
    rates, results, module = TriangularLR(**schedule), Results(), CIFAR10DataModule(**data)
    last = last_of(folder)
    # Without a checkpoint nothing counts of what a killed start may have left, step 0 included.
    resumed = int(read_checkpoint(last)["global_step"]) if last.is_file() else -1
    logger = TensorBoardLogger(
        folder.parent,
        name="",
        version=folder.name,
        default_hp_metric=False,
        purge_step=resumed + 1,
    )
    callbacks = [rates, results, Curves(), Checkpoints()]
    trainer = make_trainer(max_steps or rates.total_steps, callbacks, logger)
    trainer.fit(model, datamodule=module, ckpt_path=last if resumed >= 0 else None)
    if not results.finished:
        trainer.test(model, datamodule=module, verbose=False)
    assert results.summary is not None
    plot_curves(folder / "curves.csv", folder / "curves.png", module.name, title)
    return results.summary

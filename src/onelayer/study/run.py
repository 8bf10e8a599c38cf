"""The one place where a run is assembled: data, network, schedule, callbacks and trainer."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningDataModule, Trainer

from onelayer.core.cycles import step_size_for
from onelayer.data.adapter import count_batches, has_split, sizes
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.locks import alone
from onelayer.study.data_settings import make_data, write_config
from onelayer.study.figures import PlotCurves
from onelayer.study.finished import Run
from onelayer.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from onelayer.training.curves import Curves
from onelayer.training.divergence import Divergence
from onelayer.training.folder import AGAIN, last_of
from onelayer.training.module import OneLayer
from onelayer.training.records import Row
from onelayer.training.results import Results
from onelayer.training.saving import Checkpoints, Snapshots
from onelayer.training.schedule import ScheduledLR, TriangularLR
from onelayer.training.trainer import progress_lines, run_logger, trainer_defaults

Settings = Mapping[str, Any]
"""Arguments by section, as in a config.

``model``, ``data`` and ``schedule`` are those of OneLayer, CIFAR10DataModule and TriangularLR; data
may also be a data module, or ``class_path`` and ``init_args`` of one. ``curves``, ``test`` and
``snapshots`` are those of Curves, Results and Snapshots. ``trainer`` has flags of the Trainer;
``max_steps`` is by default the end of the schedule's last cycle.
"""


class Parts(NamedTuple):
    """The parts of a run that its settings decide."""

    data: LightningDataModule
    model: OneLayer
    schedule: TriangularLR


def assemble(settings: Settings) -> Parts:
    """Make data, network and schedule; sizes and lengths that are not given follow from the data.

    Raises:
        InputError: for an argument out of its range.
    """
    data = make_data(settings["data"])
    model = OneLayer(**with_sizes(settings["model"], data))
    return Parts(data, model, TriangularLR(**with_length(settings["schedule"], data)))


def check_training(settings: Settings) -> None:
    """Raise :class:`InputError` for settings that a run would refuse."""
    data = assemble(settings).data
    if check := getattr(data, "check_batch_size", None):
        check()


def with_sizes(model: Mapping[str, Any], data: LightningDataModule) -> dict[str, Any]:
    """Return the arguments of OneLayer, with d and k of the data if they are not given."""
    given = {name: value for name, value in model.items() if value is not None}
    if {"inputs", "classes"} <= given.keys():
        return dict(model)
    return {**model, **dict(zip(("inputs", "classes"), sizes(data), strict=True)), **given}


def with_length(schedule: Mapping[str, Any], data: LightningDataModule) -> dict[str, Any]:
    """Return the arguments of TriangularLR, with n_s chosen by the data if it is not given."""
    if schedule.get("step_size") is not None or isinstance(data, CIFAR10DataModule):
        return dict(schedule)
    return {**schedule, "step_size": step_size_for(count_batches(data), schedule.get("cycles", 1))}


def make_trainer(
    max_steps: int, callbacks: Sequence[Callback], logger: Any = False, **flags: Any
) -> Trainer:
    """Return a Trainer for one population."""
    return Trainer(
        **{**trainer_defaults(), **flags},
        max_steps=max_steps,
        callbacks=[*callbacks, *progress_lines(callbacks, flags)],
        logger=logger,
        plugins=[AtomicCheckpointIO(AGAIN)],
        enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
    )


def train_through(
    settings: Settings,
    data: LightningDataModule,
    schedule: ScheduledLR,
    max_steps: int,
    curves: Curves,
    line: Callback,
) -> list[Row]:
    """Train a population, also when all its members diverge, and return what Curves measured.

    Args:
        settings: arguments of OneLayer under ``model``, flags of the Trainer under ``trainer``.
        data: data module.
        schedule: sets the rates.
        max_steps: updates.
        curves: measures.
        line: progress line.
    """
    model = OneLayer(**with_sizes(settings["model"], data))
    callbacks = [schedule, curves, Divergence(stop=False), line]
    make_trainer(max_steps, callbacks, **settings["trainer"]).fit(model, datamodule=data)
    return curves.rows


def train_and_test(settings: Settings, folder: str | Path, title: str = "") -> Run:
    """Train, or resume after a kill, measure the test split once, and plot the curves.

    Args:
        settings: arguments by section.
        folder: folder of the run.
        title: beginning of its figure's title; by default the network.

    Returns:
        The finished run: its ``summary``, ``curves``, ``network`` and plots.
    """
    gc.collect()  # trainer, module and data refer to each other: free the last run's images
    data, model, schedule = assemble(settings)
    flags, folder = dict(settings.get("trainer", {})), Path(folder)
    results = Results(**settings.get("test", {}))
    last = last_of(folder)
    # Without a checkpoint, whatever a killed start has left is discarded, step 0 included.
    resumed = int(read_checkpoint(last)["global_step"]) if last.is_file() else -1
    callbacks = [
        schedule,
        results,
        Curves(**settings.get("curves", {})),
        PlotCurves(title),
        Snapshots(**settings.get("snapshots", {"last": 0})),
        Checkpoints(),
    ]
    max_steps = flags.pop("max_steps", schedule.total_steps)
    logger = run_logger(folder, folder.parent, resumed)
    trainer = make_trainer(max_steps, callbacks, logger, **flags)
    write_config(folder, settings)
    trainer.fit(model, datamodule=data, ckpt_path=last if resumed >= 0 else None)
    if not results.finished and has_split(data, "test"):
        trainer.test(model, datamodule=data, verbose=False)
    assert results.summary is not None
    run = Run(folder)
    run.summary = results.summary
    return run


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from writing the files of a folder meanwhile."""
    return alone(folder / ".lock", f"another process writes {folder}: waiting for it")

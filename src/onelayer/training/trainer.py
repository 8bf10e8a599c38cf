"""Defaults of the Trainer, and the folder of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from onelayer.core.errors import InputError, first_line
from onelayer.training.progress import ProgressLine


def trainer_defaults() -> dict[str, Any]:
    """Arguments of a Trainer, where nothing else is asked for."""
    return {
        # Apple's MPS has no float64, in which figures are summed.
        "accelerator": "cpu" if MPSAccelerator.is_available() else "auto",
        "devices": 1,  # Lightning would take every GPU there is
        "enable_model_summary": False,
    }


def device_of(flags: Mapping[str, Any]) -> torch.device:
    """Return the device of this process, by the Trainer's flags accelerator and devices.

    Raises:
        InputError: the flags choose several devices, or one that does not exist.
    """
    # torchrun, or another program, decides the number of processes.
    alone = {"plugins": [LightningEnvironment()], "logger": False, "enable_checkpointing": False}
    try:
        trainer = Trainer(**{**trainer_defaults(), **flags, **alone})
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise InputError(f"trainer: {first_line(error)}") from error
    if trainer.num_devices > 1:
        raise InputError(
            f"trainer.devices chooses {trainer.num_devices} devices, but a process of this command "
            "works on one.\nLeave it out, or choose a device by its number: '[1]'."
        )
    device = trainer.strategy.root_device
    if device.type == "cuda" and (rank := os.environ.get("LOCAL_RANK")):
        return torch.device("cuda", int(rank))
    return device


def progress_lines(callbacks: Iterable[Any], flags: Mapping[str, Any]) -> list[Callback]:
    """Return our progress line, unless a bar is among the callbacks or switched off.

    Without it Lightning would draw several lines with Rich wherever that happens to be installed.
    """
    off = flags.get("enable_progress_bar") is False or flags.get("barebones")
    given = any(isinstance(callback, ProgressBar) for callback in callbacks)
    return [] if off or given else [ProgressLine()]


def claim_folder(logger: Any) -> bool:
    """Make the folder of a new run, by the next version if none is given.

    Several processes may start at the same moment, and each gets a version that nobody else has.

    Args:
        logger: a TensorBoardLogger or CSVLogger.

    Returns:
        Whether it was made; false if the given version was there.
    """
    given = logger._version is not None
    while True:
        folder = Path(logger.log_dir)  # by the next version
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
            return True
        except FileExistsError:
            if given:
                return False
            logger._version = None


def run_logger(run: Path | None, runs: Path, resumed_step: int = -1) -> TensorBoardLogger:
    """Return a TensorBoardLogger for a run's own folder.

    Args:
        run: the folder of a run that is resumed or has its name; None for the next version in
            ``runs``.
        runs: the folder of runs.
        resumed_step: updates done; later points in the folder are dropped. -1 for none.
    """
    if run is None:
        return TensorBoardLogger(runs.parent, name=runs.name, default_hp_metric=False)
    purge = resumed_step + 1 if run.exists() else None
    return TensorBoardLogger(
        run.parent, name="", version=run.name, default_hp_metric=False, purge_step=purge
    )

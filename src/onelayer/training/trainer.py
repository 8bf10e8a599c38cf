"""What every training of the package has: the Trainer's defaults and the folder of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.loggers import TensorBoardLogger

from onelayer.training.events import NAME, cut


def trainer_defaults() -> dict[str, Any]:
    """Arguments of a Trainer, where nothing else is asked for."""
    return {
        # Apple's MPS has no float64, in which figures are summed.
        "accelerator": "cpu" if MPSAccelerator.is_available() else "auto",
        "devices": 1,  # Lightning would take every GPU there is
        "enable_model_summary": False,
    }


def run_logger(run: Path | None, runs: Path, resumed_step: int = -1) -> TensorBoardLogger:
    """TensorBoard in a run's own folder.

    Args:
        run: the folder, of a run that goes on or has its name; None for the next version of
            ``runs``.
        runs: the folder of runs.
        resumed_step: updates done, what was logged after them goes when the training goes on; -1
            for none: all that a killed start has logged goes now.
    """
    if run is None:
        return TensorBoardLogger(runs.parent, name=runs.name, default_hp_metric=False)
    if resumed_step < 0:
        for folder in {path.parent for path in run.rglob(f"{NAME}.*")}:
            cut(folder, keep=lambda event: False)
    return TensorBoardLogger(run.parent, name="", version=run.name, default_hp_metric=False)

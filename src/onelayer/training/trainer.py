"""What every training of the package has: the Trainer's defaults and the folder of its run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from onelayer.training.events import NAME, cut
from onelayer.training.files import atomic_write
from onelayer.training.progress import ProgressLine

METRICS = ExperimentWriter.NAME_METRICS_FILE


def trainer_defaults() -> dict[str, Any]:
    """Arguments of a Trainer, where nothing else is asked for."""
    return {
        # Apple's MPS has no float64, in which figures are summed.
        "accelerator": "cpu" if MPSAccelerator.is_available() else "auto",
        "devices": 1,  # Lightning would take every GPU there is
        "enable_model_summary": False,
    }


def progress_lines(callbacks: Iterable[Any], flags: Mapping[str, Any]) -> list[Callback]:
    """Return our progress line, unless a bar is among the callbacks or switched off.

    Without it Lightning would draw several lines with Rich wherever that happens to be installed.
    """
    off = flags.get("enable_progress_bar") is False or flags.get("barebones")
    given = any(isinstance(callback, ProgressBar) for callback in callbacks)
    return [] if off or given else [ProgressLine()]


def claim_version(logger: Any) -> bool:
    """Make the next version's folder that nobody else has: several may start at the same moment.

    Args:
        logger: a TensorBoardLogger or CSVLogger.

    Returns:
        Whether it was made; not where the version was given.
    """
    if logger._version is not None:
        return False
    while True:
        folder = Path(logger.log_dir)  # by the next version
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
            return True
        except FileExistsError:
            logger._version = None


class _GoesOn(ExperimentWriter):
    """Lightning's own writer removes the file that it finds."""

    def _check_log_dir_exists(self) -> None:
        pass


def resumed_csv(asked: CSVLogger, run: Path, step: int) -> CSVLogger:
    """A CSVLogger that goes on in a run's folder with the rows of its first ``step`` updates."""
    logger = CSVLogger(
        run.parent,
        name="",
        version=run.name,
        prefix=asked._prefix,
        flush_logs_every_n_steps=asked._flush_logs_every_n_steps,
    )
    if getattr(rank_zero_only, "rank", 0) == 0:  # the first process alone writes
        logger._experiment = _kept(run, step)
    return logger


def _kept(run: Path, step: int) -> _GoesOn:
    path = run / METRICS
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or [])
        whole = [row for row in reader if str(row["step"]).isdigit()]  # a kill may cut the last
    rows = [row for row in whole if int(row["step"]) <= step]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())
    experiment = _GoesOn(str(run))
    experiment.metrics_keys = names
    return experiment


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

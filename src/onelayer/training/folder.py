"""Folder of a run, and names of its files."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger

FOLDER = "checkpoints"
"""Subfolder of a run."""
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
AGAIN = "run the same command again, which goes on from there"


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder of the first logger's run, where ModelCheckpoint makes ``checkpoints/``.

    Return None without a logger, and for fast_dev_run and trials of Lightning's tuner, which leave
    no files. Only the first of several processes writes to it.
    """
    if not trainer.loggers or isinstance(trainer.loggers[0], DummyLogger):
        return None
    logger = trainer.loggers[0]
    version = logger.version
    name = version if isinstance(version, str) else f"version_{version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), name)


def last_of(run: Path) -> Path:
    """Return the path of the newest checkpoint in a run's folder, which may not exist."""
    return run / FOLDER / LAST

"""Where a run leaves its files."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger

FOLDER = "checkpoints"
"""Of a run's folder."""
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
AGAIN = "run the same command again, which goes on from there"


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of the first logger's run, in which ModelCheckpoint makes ``checkpoints/``.

    None without a logger, or with the one that Lightning puts in place of others for fast_dev_run
    and the trials of its tuner, which may leave nothing. It may be asked for by one process of
    several alone; only that of the first process is the one written to.
    """
    if not trainer.loggers or isinstance(trainer.loggers[0], DummyLogger):
        return None
    logger = trainer.loggers[0]
    version = logger.version
    name = version if isinstance(version, str) else f"version_{version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), name)


def last_of(run: Path) -> Path:
    """Where the newest checkpoint of a run's folder is, or would be."""
    return run / FOLDER / LAST

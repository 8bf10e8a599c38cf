"""Where a run leaves its files."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def run_folder(trainer: Trainer) -> Path | None:
    """The first logger's folder; None without a logger, where Lightning names the working folder.

    Unlike ``trainer.log_dir`` it may be asked for by one process of several alone. Only that of
    the first process is the one written to.
    """
    if not trainer.loggers:
        return None
    logger = trainer.loggers[0]
    own = isinstance(logger, TensorBoardLogger | CSVLogger)
    folder = logger.log_dir if own else logger.save_dir
    return Path(folder) if folder else None

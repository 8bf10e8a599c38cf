"""Where a run leaves its files."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path | None:
    """The logger's folder; None without a logger, where Lightning would name the working folder."""
    return Path(trainer.log_dir) if trainer.loggers and trainer.log_dir else None

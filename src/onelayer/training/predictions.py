"""Predictions as a CSV file, written whole or not at all."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from onelayer.core.errors import InputError
from onelayer.training.files import atomic_write


class PredictionsCSV(BasePredictionWriter):
    """Writes a line per image: its file, its class, that class's probability, all probabilities.

    Args:
        path: of the CSV.

    Raises:
        InputError: the path is a folder, or in none.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("batch")
        if path.is_dir() or not path.parent.is_dir():
            what = "is a folder" if path.is_dir() else f"needs the folder {path.parent}"
            raise InputError(f"--output {path} {what}: name a CSV file to write.")
        self.path = path
        self.rows: list[tuple[str, Any]] = []

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Any, *args: Any
    ) -> None:
        """Keep a batch: ``prediction`` is the names of its files and probabilities (n, k)."""
        self.rows += zip(*prediction, strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        classes = list(data.classes)
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["file", "class", "probability", *classes])
        for name, p in self.rows:
            best = int(p.argmax())
            writer.writerow([name, classes[best], float(p[best]), *map(float, p)])
        atomic_write(self.path, text.getvalue())

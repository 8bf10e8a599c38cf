"""Predictions as a CSV file, written whole or not at all."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.foreign import class_names
from onelayer.training.files import atomic_write

HEADER = ("class", "probability")
FIRST = ("file", "row")
"""What the first column may be."""


class PredictionsCSV(BasePredictionWriter):
    """Writes a line per image: its file, its class, that class's probability, all probabilities.

    A name that a spreadsheet would take for a formula begins with ``./``. Rows of a table that have
    no name are numbered, from 0.

    Args:
        path: of the CSV; earlier predictions are replaced.

    Raises:
        InputError: the path is a folder, or in none, or a file with something else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("batch")
        if path.is_dir() or not path.parent.is_dir():
            what = "is a folder" if path.is_dir() else f"needs the folder {path.parent}"
            raise InputError(f"--output {path} {what}: name a CSV file to write.")
        if path.exists() and not _is_predictions(path):
            raise InputError(
                f"--output {path} is there and holds no predictions: name another file, or move "
                "it away."
            )
        self.path = path
        self.rows: list[tuple[str | int, Any]] = []

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Any, *args: Any
    ) -> None:
        """Keep a batch: its probabilities (n, k), or the names of its files and these."""
        if isinstance(prediction, Tensor):
            first = len(self.rows)
            prediction = list(range(first, first + len(prediction))), prediction
        self.rows += zip(prediction[0], prediction[1].cpu(), strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        classes = class_names(data, len(self.rows[0][1]))
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow([FIRST[isinstance(self.rows[0][0], int)], *HEADER, *classes])
        for name, p in self.rows:
            best = int(p.argmax())
            writer.writerow([_plain(name), classes[best], float(p[best]), *map(float, p)])
        # Names may be any bytes: they stand there as they are.
        atomic_write(self.path, text.getvalue().encode(errors="surrogateescape"))


def _is_predictions(path: Path) -> bool:
    if not path.is_file():  # such as /dev/stdout
        return True
    starts = [",".join((first, *HEADER)).encode() for first in FIRST]
    with path.open("rb") as file:
        beginning = file.read(max(map(len, starts)))
    return not beginning or any(beginning.startswith(start) for start in starts)


def _plain(name: str | int) -> str | int:
    """The name of a file, as no spreadsheet takes for a formula; a row's number as it is."""
    formula = isinstance(name, str) and name.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"./{name}" if formula else name

"""Predictions as a CSV file, complete or not there."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.adapter import class_names
from onelayer.data.naming import cell, shown
from onelayer.training.files import atomic_write

HEADER = ("class", "probability")
FIRST = ("file", "row")  # names of the first column


class PredictionsCSV(BasePredictionWriter):
    """Writes a line per sample: its file, its class, that class's probability, all probabilities.

    A file name that a spreadsheet would take for a formula begins with ``./``, a class name with an
    apostrophe. Samples without a name are numbered from 0.

    Args:
        path: the CSV file; earlier predictions are replaced.

    Raises:
        InputError: the path is a folder, its folder is missing, or the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("batch")
        if path.suffix == ".parquet":
            raise InputError(f"--output {path}: predictions are written as CSV. Name a .csv file.")
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
        classes = class_names(pl_module, len(self.rows[0][1]))
        head = [FIRST[isinstance(self.rows[0][0], int)], *HEADER, *classes]
        lines = [
            [name, classes[int(p.argmax())], float(p.max()), *p.tolist()] for name, p in self.rows
        ]
        atomic_write(self.path, _csv(head, lines))


def _csv(head: list[str], lines: list[list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(_of_class, head))
    for name, label, *shares in lines:
        first = cell(name, "./") if isinstance(name, str) else name
        writer.writerow([first, _of_class(label), *shares])
    # Names of files may be any bytes: they stand there as they are.
    return text.getvalue().encode(errors="surrogateescape")


def _is_predictions(path: Path) -> bool:
    if not path.is_file():  # such as /dev/stdout
        return True
    starts = [",".join((first, *HEADER)).encode() for first in FIRST]
    with path.open("rb") as file:
        beginning = file.read(max(map(len, starts)))
    return not beginning or any(beginning.startswith(start) for start in starts)


def _of_class(name: str) -> str:
    return cell(shown(name, None))

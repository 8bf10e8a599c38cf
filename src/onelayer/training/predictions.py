"""Predictions as a CSV or Parquet file, written whole or not at all."""

from __future__ import annotations

import csv
import importlib.util
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
FIRST = ("file", "row")
"""What the first column may be."""


class PredictionsCSV(BasePredictionWriter):
    """Writes a line per image: its file, its class, that class's probability, all probabilities.

    In a CSV, a file's name that a spreadsheet would take for a formula begins with ``./``, and a
    class's with an apostrophe. Rows of a table that have no name are numbered, from 0.

    Args:
        path: of the CSV, or of a .parquet; earlier predictions are replaced.

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
        if path.suffix == ".parquet":
            _check_pyarrow()
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
        content = _parquet if self.path.suffix == ".parquet" else _csv
        atomic_write(self.path, content(head, lines))


def _check_pyarrow() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            "--output: pyarrow writes .parquet, and is not installed:\n"
            'pip install "onelayer[arrays]"'
        )


def _csv(head: list[str], lines: list[list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(_of_class, head))
    for name, label, *shares in lines:
        first = cell(name, "./") if isinstance(name, str) else name
        writer.writerow([first, _of_class(label), *shares])
    # Names of files may be any bytes: they stand there as they are.
    return text.getvalue().encode(errors="surrogateescape")


def _parquet(head: list[str], lines: list[list[Any]]) -> bytes:
    import pyarrow.parquet

    content = io.BytesIO()
    columns = [pyarrow.array(column) for column in zip(*lines, strict=True)]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, head), content)
    return content.getvalue()


def _is_predictions(path: Path) -> bool:
    if not path.is_file():  # such as /dev/stdout
        return True
    if path.suffix == ".parquet":
        return _columns(path)[1:3] == list(HEADER)
    starts = [",".join((first, *HEADER)).encode() for first in FIRST]
    with path.open("rb") as file:
        beginning = file.read(max(map(len, starts)))
    return not beginning or any(beginning.startswith(start) for start in starts)


def _columns(path: Path) -> list[str]:
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except (OSError, pyarrow.ArrowException):
        return []


def _of_class(name: str) -> str:
    return cell(shown(name, None))

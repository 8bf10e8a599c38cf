"""Tables: features, labels and names as they were given, whatever they were read from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.backbone import Backbone
from onelayer.data.features import raw_chunks
from onelayer.data.naming import match

Array = NDArray[Any]
CHUNK = 2**20  # numbers checked together: 8 MB of float64
_COUNTED = 50  # fewest rows for the warning that a column only numbers its rows


@dataclass(frozen=True)
class Columns:
    """Names of the keys or columns of a file.

    Args:
        x: key or column of the features, or several columns. By default the key "X"; of a .csv or
            .parquet a column "X" of lists, or else all columns but those named below.
        y: key or column of the labels.
        groups: key or column of the groups, which a validation split keeps together.
        weight: key or column of the weights of the samples.
    """

    x: str | Sequence[str] | None = None
    y: str = "y"
    groups: str | None = None
    weight: str | None = None

    @property
    def others(self) -> dict[str, str]:
        """Names of the keys or columns beside the features, by argument."""
        given = {"y": self.y, "groups": self.groups, "weight": self.weight}
        return {argument: name for argument, name in given.items() if name}


@dataclass(frozen=True)
class Table:
    """Features, labels and names as they were given.

    Attributes:
        x: features (n, d), uint8 or floating.
        y: labels (n,), whole numbers or strings; None if only features were read.
        groups: groups (n,).
        weight: weights of the samples (n,), finite and not negative.
        classes: names of the classes; a label that is a whole number is an index of them.
        where: name of the file or object, for messages.
        columns: names of the features.
        first_row: number of the first row in the file, for messages.
        mapped: of features in a mapped file, a function to call before they are read, with whether
            that is in order.
        shape: colours, height and width of images; else ().
        backbone: description of the network that made the features, if a file holds it.

    Raises:
        InputError: shapes do not fit, or the table is empty.
    """

    x: Tensor
    y: Array | None = None
    groups: Array | None = None
    classes: Sequence[str] | None = None
    where: str = "X"
    columns: Sequence[str] | None = None
    first_row: int = 0
    mapped: Callable[[bool], None] | None = None
    shape: tuple[int, ...] = ()
    backbone: Backbone | None = None
    weight: Array | None = None

    def __post_init__(self) -> None:
        n = len(self.x)
        if n == 0 or self.x.ndim != 2 or self.x.shape[1] == 0:
            raise InputError(
                f"{self.where} is empty: its features are {tuple(self.x.shape)}, and must be "
                "(n, d), a row of at least one number each."
            )
        for name in ("y", "groups", "weight"):
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise InputError(
                    f"{self.where}: {name} is {value.shape}, and X has {n} rows: there must be one "
                    f"{'weight' if name == 'weight' else 'label'} for each row."
                )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def labels(self) -> Array:
        """Labels (n,), which must be there."""
        if self.y is None:
            raise InputError(f"{self.where} has no labels, which are needed here.")
        return self.y

    def column(self, i: int) -> str:
        """Return a column's name for messages."""
        return f"column {self.columns[i]!r}" if self.columns else f"column {i}"

    def ordered(self, columns: Sequence[str] | None, whose: str) -> Table:
        """Return the table with its columns in the order of ``columns``, matched by name.

        Raises:
            InputError: a name is missing or unknown.
        """
        if columns is None or self.columns is None:
            return self
        order = match(self.columns, columns, "columns", self.where, whose)
        if order == list(range(len(order))):
            return self
        return replace(self, x=self.x[:, order], columns=list(columns))

    def check_width(self, d: int, whose: str) -> None:
        """Raise :class:`InputError` unless the table has d features, as ``whose`` are."""
        if self.x.shape[1] != d:
            raise InputError(
                f"{self.where} has {self.x.shape[1]} features, and {whose} {d}: it must be as many."
            )

    def chunks(self) -> Iterator[Tensor]:
        """Give the features in order, :data:`CHUNK` numbers at a time, checked to be finite.

        Raises:
            InputError: a number is NaN or infinite; naming file, row and column.
        """
        size, first = max(1, CHUNK // self.x.shape[1]), 0
        for chunk in raw_chunks(self.x, None, size, self.mapped):
            # A finite sum has finite terms and costs one pass; finite terms may still overflow.
            finite = not chunk.is_floating_point() or chunk.sum(dtype=torch.float64).isfinite()
            if not finite and len(bad := (~chunk.isfinite()).nonzero()):
                row, column = bad[0].tolist()
                raise InputError(
                    f"{self.where}: row {first + row + self.first_row}, {self.column(column)} is "
                    f"{float(chunk[row, column])}: every feature must be a finite number.\n"
                    "Fill what is missing, or leave the row out."
                )
            first += len(chunk)
            yield chunk

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest number."""
        found = torch.stack([torch.stack(chunk.aminmax()) for chunk in self.chunks()])
        return float(found[:, 0].min()), float(found[:, 1].max())


def joined(tables: Sequence[Table]) -> Table:
    """Return the rows of tables as one table, in memory of its own."""
    return replace(
        tables[0],
        x=torch.cat([table.x for table in tables]),
        y=np.concatenate([table.labels for table in tables]),
    )


def warn_of_counters(table: Table) -> None:
    """Warn about a column that numbers the rows: distinct whole numbers, hardly any left out."""
    n = len(table)
    if n < _COUNTED or (table.x.dtype == torch.uint8 and n > 256):
        return
    head = table.x[:_COUNTED].double()
    counts = (head == head.round()).all(0) & (head.sort(0).values.diff(dim=0) > 0).all(0)
    for i in counts.nonzero().flatten().tolist():
        values = table.x[:, i].double()
        low, high = int(values.min()), int(values.max())
        whole = bool((values == values.round()).all())
        if whole and low >= 0 and high - low < 2 * n and len(values.unique()) == n:
            warnings.warn(
                f"{table.where}: {table.column(i)} has {n} distinct whole numbers from {low} to "
                f"{high}, as a row number or an id has, and is learned from.\nIf it is one, leave "
                "it out, or list the columns to use with --data.x '[a,b]'.",
                stacklevel=2,
            )

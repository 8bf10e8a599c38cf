"""Rows of a table to classify, and what every table is checked for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.features import Statistics, raw_chunks, standardise
from onelayer.data.table import Table

CHUNK = 2**20
"""Numbers that are looked at together: 8 MB of float64."""
_BATCH = 500


class RowLoader:
    """Batches X (n, d) of a table's rows in order, standardised as they are asked for.

    Raises:
        InputError: the table is not as wide as the network, or has a number that is not finite.
    """

    def __init__(self, table: Table, statistics: Statistics, unit: bool = False) -> None:
        check_width(table, len(statistics.mean), "the network was trained on")
        check_finite(table)
        self.x, self.statistics, self.unit = table.x, statistics, unit

    def __len__(self) -> int:
        return -(-len(self.x) // _BATCH)

    def __iter__(self) -> Iterator[Tensor]:
        for x in self.x.split(_BATCH):
            yield standardise(x, self.statistics, unit=self.unit)


def check_width(table: Table, d: int, whose: str) -> None:
    """Raise :class:`InputError` unless a table has d features, as ``whose`` are."""
    if table.x.shape[1] != d:
        raise InputError(
            f"{table.where} has {table.x.shape[1]} features, and {whose} {d}: it must be as many."
        )


def check_finite(table: Table) -> None:
    """Raise :class:`InputError`, naming file, row and column, for a number that is not finite."""
    if table.x.dtype.is_floating_point:
        for _ in finite_chunks(table):
            pass


def finite_chunks(table: Table) -> Iterator[Tensor]:
    """Give a table's rows in order, CHUNK numbers at a time, each checked as it is read."""
    size, first = max(1, CHUNK // table.x.shape[1]), 0
    for chunk in raw_chunks(table.x, None, size, table.mapped):
        # A finite sum has finite terms and costs one pass; finite terms may still overflow.
        finite = not chunk.is_floating_point() or bool(chunk.sum(dtype=torch.float64).isfinite())
        if not finite and len(bad := (~chunk.isfinite()).nonzero()):
            row, column = bad[0].tolist()
            raise InputError(
                f"{table.place(first + row, column)} is {float(chunk[row, column])}: every feature "
                "must be a finite number.\nFill what is missing, or leave the row out."
            )
        first += len(chunk)
        yield chunk

"""The rows of curves.csv: the figures of every network at every measurement."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onelayer.core.errors import InputError
from onelayer.training.files import atomic_write, named

PLAIN_QUANTITIES = ("cost", "loss", "accuracy")
"""Names of metrics that every run has, in the order of tables."""
QUANTITIES = (*PLAIN_QUANTITIES, "balanced_accuracy")
"""Names of metrics with class weights."""


def quantities(figures: Mapping[str, Any]) -> list[str]:
    """Return the names of :data:`QUANTITIES` that metrics have, in order."""
    return [name for name in QUANTITIES if figures.get(name) is not None]


class Row(NamedTuple):
    """One line of curves.csv: the figures of one member over one split after ``step`` updates."""

    step: int
    split: str
    member: int
    l2: float
    seed: int
    lr: float
    cost: float
    loss: float
    accuracy: float
    balanced_accuracy: float | None = None  # only with class weights


def restored_rows(saved: Any) -> list[Row]:
    """Return the records that a callback has saved in a checkpoint.

    Raises:
        InputError: naming the first that is none.
    """
    if not isinstance(saved, list):
        raise InputError(f"the checkpoint's curves are {str(saved)[:40]!r}, and no list of rows.")
    return [_restored_row(i, row) for i, row in enumerate(saved)]


def _restored_row(i: int, row: Any) -> Row:
    least = len(_KINDS) - 1
    fits = isinstance(row, list | tuple) and least <= len(row) <= len(_KINDS)
    if not fits or not all(
        isinstance(value, str if kind is str else int | float) and not isinstance(value, bool)
        for value, kind in zip(row, _KINDS, strict=False)
    ):
        raise InputError(
            f"the checkpoint's row {i} of curves is {str(row)[:80]}: it is damaged, or was changed."
        )
    return Row(*row)


_KINDS: list[Any] = [int, str, int, float, int, float, float, float, float, float]
"""Types of a record's values."""


def values_of(row: Row) -> tuple[Any, ...]:
    """Return a record's values, without a balanced accuracy that was not measured."""
    return tuple(row if row.balanced_accuracy is not None else row[:-1])


def is_finite(row: Row) -> bool:
    """Return whether the member has not diverged."""
    return math.isfinite(row.cost) and math.isfinite(row.loss)


def write_rows(path: Path, rows: Iterable[Row], append: bool) -> None:
    """Write or append rows to a curves.csv; numbers in full, so that they read back exactly.

    A kill leaves the rows whole: what is written anew replaces the file, what is appended is one
    write. A run that was killed after its last checkpoint has nothing left that would mend it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text, values = io.StringIO(newline=""), [values_of(row) for row in rows]
    writer = csv.writer(text)
    if not append:
        writer.writerow(Row._fields[: len(values[0]) if values else len(_KINDS) - 1])
    writer.writerows(values)
    if not append:
        atomic_write(path, text.getvalue())
        return
    with named(path), path.open("ab", buffering=0) as file:
        file.write(text.getvalue().encode())


def read_rows(path: Path) -> list[Row]:
    """Return the records of a curves.csv.

    Raises:
        InputError: there is no such file, or it is not whole; naming the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the curves {path}: {error}.") from error
    header, *lines = text.splitlines() or [""]
    if header not in HEADERS:
        raise InputError(
            f"{path} is not a curves.csv: its first line is {header[:80]!r}, and it must be\n"
            f"{HEADERS[0]}"
        )
    if not lines:
        raise InputError(f"{path} has no figures: nothing stands below its first line.")
    if not text.endswith("\n"):  # a number cut short is a number still
        raise InputError(f"{path} is cut short: its last line, {len(lines) + 1}, is not whole.")
    kinds = _KINDS[: header.count(",") + 1]
    return [_row(f"{path}, line {i}", line, kinds) for i, line in enumerate(lines, start=2)]


HEADERS = (",".join(Row._fields[:-1]), ",".join(Row._fields))
"""First lines of a curves.csv, without and with class weights."""


def _row(where: str, line: str, kinds: Sequence[Any]) -> Row:
    try:
        return Row(*(kind(value) for kind, value in zip(kinds, line.split(","), strict=True)))
    except ValueError as error:
        names = HEADERS[len(kinds) == len(_KINDS)]
        raise InputError(f"{where}: {line[:80]!r} is not\n{names}\nThe file is damaged.") from error


def finals(rows: Sequence[Row], split: str) -> tuple[list[float], dict[str, list[float]]]:
    """Return λ and metrics of each member over ``split`` at its last measurement."""
    last = last_figures(rows, split)
    names = quantities(last[0]._asdict()) if last else []
    return [r.l2 for r in last], {name: [getattr(r, name) for r in last] for name in names}


def last_figures(rows: Sequence[Row], split: str) -> list[Row]:
    """Return the records of ``split`` at its last measurement, one per member."""
    rows = [row for row in rows if row.split == split]
    return [row for row in rows if row.step == rows[-1].step]


def diverged(rows: Sequence[Row]) -> set[int]:
    """Return the members with a loss or cost that is not finite."""
    return {row.member for row in rows if not is_finite(row)}

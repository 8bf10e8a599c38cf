"""Tables: features and labels as they were given, whatever they were read from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.naming import match

Array = NDArray[Any]
CHANNELS = (1, 3, 4)  # of images: grey, colours, colours with transparency
_EXACT = 2**24  # whole numbers that float32 holds
_COUNTED = 50  # rows at least of which a column may be told to count them


@dataclass(frozen=True)
class Columns:
    """Names of the keys or columns of a file.

    Args:
        x: key or column of the features, or several columns. By default the key "X"; of a .csv or
            .parquet a column "X" of lists, or else all columns but those of labels and groups.
        y: of the labels.
        groups: of the groups that a validation split must not tear apart, if there are any.
    """

    x: str | Sequence[str] | None = None
    y: str = "y"
    groups: str | None = None


@dataclass(frozen=True)
class Table:
    """Features and labels as they were given.

    ``x`` is (n, d), bytes or floating, ``y`` (n,) whole numbers or strings as numpy holds them, or
    None where only features were asked for; ``where`` names the file in messages, ``columns`` the
    features, ``first_row`` is the number that a file's own reader would give to row 0. A label that
    is a whole number is an index of ``classes`` where there are any. ``mapped`` tells a file that
    is not in memory whether it is about to be read in order.
    """

    x: Tensor
    y: Array | None
    groups: Array | None = None
    classes: list[str] | None = None
    where: str = "X"
    columns: Sequence[str] | None = None
    first_row: int = 0
    mapped: Callable[[bool], None] | None = None
    shape: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        n = len(self.x)
        if n == 0 or self.x.ndim != 2 or self.x.shape[1] == 0:
            raise InputError(
                f"{self.where} is empty: its features are {tuple(self.x.shape)}, and must be "
                "(n, d), a row of at least one number each."
            )
        for name in ("y", "groups"):
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise InputError(
                    f"{self.where}: {name} is {value.shape}, and X has {n} rows: there must be one "
                    "label for each row."
                )

    def __len__(self) -> int:
        return len(self.x)

    def place(self, row: int, column: int) -> str:
        """Return how a person finds a number: file, row and column."""
        return f"{self.where}: row {row + self.first_row}, {self.column(column)}"

    def column(self, i: int) -> str:
        """Return what a person calls a column."""
        return f"column {self.columns[i]!r}" if self.columns else f"column {i}"

    def ordered(self, columns: Sequence[str] | None, whose: str) -> Table:
        """Return the same with its columns in the order of ``columns``, matched by name.

        Raises:
            InputError: a name is missing or unknown.
        """
        if columns is None or self.columns is None:
            return self
        order = match(self.columns, columns, "columns", self.where, whose)
        if order == list(range(len(order))):
            return self
        return replace(self, x=self.x[:, order], columns=list(columns))


# ---- features


def as_features(value: Any, where: str) -> tuple[Tensor, tuple[int, ...]]:
    """Return features (n, d) as a tensor, and the shape (c, height, width) of images, else ().

    Raises:
        InputError: they are no numbers, or images whose layout cannot be told.
    """
    if not isinstance(value, Tensor):
        value = np.asarray(value)
        if value.dtype.kind not in "fiub":
            raise InputError(
                f"{where} is an array of {value.dtype}: features are numbers, float16, float32, "
                "float64 or uint8."
            )
        value = torch.from_numpy(np.ascontiguousarray(value.astype(_native(value), copy=False)))
    x = value.detach()
    if x.is_complex() or x.layout != torch.strided:
        raise InputError(f"{where} is {x.dtype}, {x.layout}: features are dense real numbers.")
    if x.ndim == 4 and is_channels_last(tuple(x.shape[1:]), where):
        warn_of_channels_last(tuple(x.shape[1:]), where)
        x = x.permute(0, 3, 1, 2)
    shape = tuple(x.shape[1:])
    x = x.flatten(1) if x.ndim > 2 else x.unsqueeze(1) if x.ndim == 1 and len(x) else x
    return as_floats(x), shape if len(shape) == 3 else ()


def is_channels_last(shape: tuple[int, ...], where: str) -> bool:
    """Return whether images are (height, width, channels), not (channels, height, width).

    Raises:
        InputError: both are as likely.

    >>> is_channels_last((32, 32, 3), "X"), is_channels_last((3, 32, 32), "X")
    (True, False)
    >>> is_channels_last((512, 4, 4), "X"), is_channels_last((512, 1, 1), "X")
    (False, False)
    """
    first, middle, last = shape
    if last not in CHANNELS or middle <= last:
        return False
    if first not in CHANNELS:
        return first > last
    if first == last == 1:
        return False
    raise InputError(
        f"{where} has images {shape}: the channels may be the first of the three, or the last.\n"
        "Give features as rows, (n, d), or images whose height and width are above 4."
    )


def warn_of_channels_last(shape: tuple[int, ...], where: str) -> None:
    """Warn that images were taken to have their channels last."""
    warnings.warn(
        f"{where}: samples of shape {shape} were read as images (height, width, channels).",
        stacklevel=2,
    )


def _native(value: Array) -> np.dtype[Any]:
    """Return the dtype in this machine's byte order, as torch has it."""
    wide = {"u2": "i4", "u4": "i8", "u8": "i8", "f16": "f8", "f12": "f8"}
    kind = f"{value.dtype.kind}{value.dtype.itemsize}"
    return np.dtype(wide.get(kind, kind)) if value.dtype.kind != "b" else value.dtype


def as_floats(x: Tensor) -> Tensor:
    """Return bytes and floats as they are, other whole numbers as floats that hold them."""
    if x.dtype == torch.uint8 or x.dtype in (torch.float16, torch.float32, torch.float64):
        return x
    if x.dtype.is_floating_point:  # bfloat16
        return x.float()
    large = x.numel() and x.dtype != torch.bool and int(x.abs().max()) > _EXACT
    return x.double() if large else x.float()


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


# ---- labels


def labels(value: Any, where: str, what: str = "labels", first_row: int = 0) -> Array:
    """Return labels, or groups, (n,): whole numbers or strings, as numpy holds them.

    Raises:
        InputError: they are floats, one-hot, mixed or blank; naming the row.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    y = np.asarray(value)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2:
        raise InputError(
            f"{where} has the shape {y.shape}: {what} are (n,), one whole number or string a row.\n"
            "One-hot labels become such by y.argmax(1)."
        )
    if y.dtype.kind == "O":
        y = _of_objects(y, where, what, first_row)
    if y.dtype.kind == "f" and len(y):
        raise InputError(
            f"{where}[0] = {y.flat[0]} is a float: {what} are whole numbers or strings.\nWrite "
            "them as such, y.astype(int) where they are whole."
        )
    if y.dtype.kind not in "iubUS":
        raise InputError(f"{where} is an array of {y.dtype}: {what} are whole numbers or strings.")
    if y.dtype.kind == "S":
        y = _decoded(y, where)
    if y.dtype.kind == "b":
        return np.where(y, "True", "False")
    if y.dtype.kind in "iu":
        return y.astype(np.int64)
    if len(blank := np.flatnonzero(np.char.strip(y) == "")):
        raise _missing(where, int(blank[0]) + first_row, "blank", what)
    return y


def _decoded(y: Array, where: str) -> Array:
    try:
        return np.char.decode(y, "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: {error.object[:40]!r} is not UTF-8. Save strings.") from error


def _missing(where: str, row: int, value: str, what: str) -> InputError:
    return InputError(
        f"{where}, row {row}, is {value}: {what} are whole numbers or strings, and none is "
        "missing.\nFill it in, or leave the row out."
    )


def _of_objects(y: Array, where: str, what: str, first_row: int) -> Array:
    """Return an array of Python's strings, or of its whole numbers, as numpy's own."""
    values = y.tolist()
    for row, value in enumerate(values, first_row):
        if value is None or value != value:
            raise _missing(where, row, str(value), what)
    text = bool(values) and isinstance(values[0], str)
    for row, value in enumerate(values, first_row):
        whole = not isinstance(value, bool) and isinstance(value, Integral)
        if not (isinstance(value, str) if text else whole):
            words = "strings, as the first" if text else "whole numbers or strings"
            raise InputError(
                f"{where}, row {row}, is {str(value)[:40]!r} ({type(value).__name__}): {what} are "
                f"{words}.\nWrite all of them in one way."
            )
    try:
        return y.astype(str if text else np.int64)
    except OverflowError as error:
        raise InputError(f"{where}: {what} must be below 2^63. Write them as strings.") from error

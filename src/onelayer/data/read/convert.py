"""Arrays and tensors of any library, made the features and labels of a table."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.table import Array

CHANNELS = (1, 3, 4)  # of images: grey, colours, colours with transparency
_EXACT = 2**24  # largest whole number up to which float32 holds all


# ---- features


def as_features(value: Any, where: str) -> tuple[Tensor, tuple[int, ...]]:
    """Return features (n, d) as a tensor, and the shape (c, height, width) of images, else ().

    Raises:
        InputError: they are not numbers, or the layout of images is ambiguous.
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
        InputError: both are equally likely.

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


def weights(value: Any, where: str, first_row: int = 0) -> Array:
    """Return the weights of samples, float64 (n,).

    Raises:
        InputError: they are not (n,), or a weight is negative, NaN or infinite; naming the row.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    given = np.asarray(value)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim != 1 or given.dtype.kind not in "iufb":
        raise InputError(
            f"{where} has the shape {given.shape} and dtype {given.dtype}: weights are (n,), one "
            "number for each row."
        )
    w = given.astype(np.float64)
    if len(wrong := np.flatnonzero(~((w >= 0) & (w < np.inf)))):
        row = int(wrong[0])
        raise InputError(
            f"{where}, row {row + first_row}, is {w[row]:g}: weights are finite numbers, 0 or "
            "more.\nCorrect it, or leave the row out."
        )
    return w


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

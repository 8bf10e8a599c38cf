"""Checks of values that several modules need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onelayer.core.errors import InputError

MOST_UPDATES = 10**15  # every whole number up to it is a float64
LARGEST_SEED = 2**64 - 1
LARGEST = 1e18  # rate or penalty: the product of two of them is a float32


def is_number(value: Any) -> bool:
    """Return whether it is an int or a float; True and False are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def at_home(path: str | Path) -> Path:
    """Return the path with ~ expanded; raise :class:`InputError` if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such user. Give a full path.") from None


def check_whole(name: str, value: Any, at_least: int, at_most: int | None = None) -> None:
    """Raise :class:`InputError`, naming argument, value and range, unless it is a whole number."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < at_least or (at_most is not None and value > at_most):
        legal = f">= {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        raise InputError(f"{name} must be a whole number {legal}, not {value!r}.")


def check_number(name: str, value: Any) -> None:
    """Raise :class:`InputError` unless the value is a number from 0 to :data:`LARGEST`."""
    if not is_number(value) or not math.isfinite(value) or value < 0:
        raise InputError(f"{name} must be a finite number >= 0, not {value!r}.")
    if value > LARGEST:
        raise InputError(f"{name} must be at most {LARGEST:g}, not {value!r}.")


def check_share(name: str, value: Any) -> None:
    """Raise :class:`InputError` unless the value is a number from 0 to below 1."""
    if not is_number(value) or not 0 <= value < 1:
        raise InputError(f"{name} must be a number from 0 to below 1, not {value!r}.")


def check_positive(name: str, value: Any) -> None:
    """Raise :class:`InputError` unless the value is a finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise InputError(f"{name} must be a finite number > 0, not {value!r}.")


def check_among(name: str, value: Any, legal: tuple[Any, ...]) -> None:
    """Raise :class:`InputError` unless the value is one of a few; 1 is not True."""
    if not any(value is option or (isinstance(value, str) and value == option) for option in legal):
        raise InputError(f"{name} must be one of {', '.join(map(str, legal))}, not {value!r}.")


def check_same(
    what: str, here: Mapping[str, Any], saved: Mapping[str, Any], advice: str, section: str = ""
) -> None:
    """Raise :class:`InputError` if settings differ from those of something made before.

    Args:
        what: name of what was made before, such as "the checkpoint".
        here: the settings now, by name.
        saved: the settings then. A setting on one side only counts as None on the other.
        advice: sentence that tells the user what to do.
        section: section of the settings, such as "model".
    """
    before = f"{section}." if section else ""
    different = [
        f"{before}{name} is {here.get(name)!r} here but {saved.get(name)!r} in {what}"
        for name in dict.fromkeys([*here, *saved])
        if here.get(name) != saved.get(name)
    ]
    if different:
        raise InputError(",\n".join(different[:2]) + f":\n{advice}")


def check_pair(X: Any, y: Tensor, at_least: int = 1) -> None:
    """Raise :class:`InputError`, with dtypes and shapes, unless X is (n, d) and y its labels (n,).

    Args:
        X: features; floating.
        y: labels; int64.
        at_least: smallest n.
    """
    given = f"X {X.dtype} {tuple(X.shape)} and y {y.dtype} {tuple(y.shape)}"
    if len(X.shape) != 2 or y.shape != X.shape[:1] or len(X) < at_least or X.shape[1] < 1:
        raise InputError(f"X must be (n, d) and y (n,) with n >= {at_least}, d >= 1, not {given}.")
    if not X.dtype.is_floating_point or y.dtype != torch.int64:
        raise InputError(f"X must be floating point and y int64, not {given}.")


def check_inputs(X: Any, d: int) -> None:
    """Raise :class:`InputError`, with dtype and shape, unless X is floating (n, d).

    Weights cast to the dtype of whole numbers would all be 0.
    """
    if not isinstance(X, Tensor) or not X.dtype.is_floating_point or X.shape[1:] != (d,):
        kind = f"{X.dtype} {tuple(X.shape)}" if isinstance(X, Tensor) else f"a {type(X).__name__}"
        raise InputError(
            f"X must be floating point (n, {d}), not {kind}. Bytes are standardised first, with "
            "the mean and standard deviation of the training split."
        )


def check_dense(name: str, T: Tensor) -> None:
    """Raise :class:`InputError` unless a tensor stores all its numbers, as float32 or float64.

    An expanded view of one number can have the shape of billions.
    """
    dense = T.layout == torch.strided and T.dtype in (torch.float32, torch.float64)
    if not dense or T.untyped_storage().nbytes() < T.numel() * T.itemsize:
        raise InputError(f"{name} is no whole tensor of float32 or float64 numbers.")


def check_labels(y: Tensor, classes: int | None = None) -> None:
    """Raise :class:`InputError`, naming the first row, if a label is outside 0 … classes - 1.

    Args:
        y: labels (n,).
        classes: how many there are; by default only negative labels are refused.
    """
    wrong = y < 0 if classes is None else (y < 0) | (y >= classes)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        legal = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise InputError(
            f"y[{row}] = {int(y[row])} is no label: labels are whole numbers, {legal}."
        )


def check_weight(weight: Any, n: int) -> None:
    """Raise :class:`InputError` unless weights (n,) or (m, n) are finite and not negative."""
    if not isinstance(weight, Tensor):
        raise InputError(
            f"weight must be a tensor, not a {type(weight).__name__}. Convert with torch.as_tensor."
        )
    shape = tuple(weight.shape)
    if weight.ndim not in (1, 2) or weight.shape[-1] != n or not len(weight):
        raise InputError(
            f"weight has shape {shape}, but there are {n} samples. Give one weight for each "
            f"sample, ({n},), or for each member and sample, (m, {n})."
        )
    if weight.is_complex() or not bool((weight.isfinite() & (weight >= 0)).all()):
        wrong = "complex" if weight.is_complex() else weight[~(weight >= 0) | weight.isinf()][0]
        raise InputError(
            f"weight has the value {wrong}: weights are finite numbers, zero or larger. Correct "
            "or drop the sample."
        )

"""Arguments that must be numbers of some kind."""

from __future__ import annotations

import math
from typing import Any

from onelayer.core.errors import InputError

LARGEST = 1e18
"""Rates and penalties: the product of two of them must be a float32."""


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


def is_number(value: Any) -> bool:
    """Whether it is an int or a float; True and False are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)

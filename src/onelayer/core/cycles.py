"""Cyclical learning rates in closed form: η as a pure function of the update number.

Smith, *Cyclical Learning Rates for Training Neural Networks* (WACV 2017, arXiv:1506.01186). One
cycle is ``2 * step_size`` updates: up from ``base_lr`` to ``max_lr`` and down again. The step is an
integer, and the position in the cycle is found by integer arithmetic. So there is no drift, and
resuming needs only the step.

>>> [triangular(t, base_lr=0.0, max_lr=1.0, step_size=2) for t in range(6)]
[0.0, 0.5, 1.0, 0.5, 0.0, 0.5]
>>> rate = cyclical("triangular2", base_lr=0.0, max_lr=1.0, step_size=2)
>>> [rate(t) for t in range(8)]
[0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from onelayer.core.checks import MOST_UPDATES, check_among, check_number, check_whole, is_number
from onelayer.core.errors import InputError

STEP_SIZE = 500  # updates in half a cycle, by default
EPOCHS = 20  # of all cycles together, if the length follows from the data
Schedule = Callable[[int], float]
"""Maps the number of updates done so far to the rate η of the next update."""


def cyclical(
    mode: str, base_lr: float, max_lr: float, step_size: int, gamma: float = 1.0
) -> Schedule:
    """Return the schedule of a mode.

    Args:
        mode: triangular, triangular2 or exp_range, the functions below.
        base_lr: η_min, the rate at the ends of a cycle.
        max_lr: η_max, the rate in its middle.
        step_size: n_s, updates in half a cycle.
        gamma: factor per update of exp_range, in (0, 1].

    Raises:
        InputError: naming the argument and its range.
    """
    check_cycle(base_lr, max_lr, step_size, gamma)
    cycle: dict[str, Any] = {"base_lr": base_lr, "max_lr": max_lr, "step_size": step_size}
    schedules: dict[str, Schedule] = {  # not lambdas: a trainer that holds one can be saved
        "triangular": partial(triangular, **cycle),
        "triangular2": partial(triangular2, **cycle),
        "exp_range": partial(exp_range, gamma=gamma, **cycle),
    }
    check_among("mode", mode, tuple(schedules))
    return schedules[mode]


def triangular(step: int, base_lr: float, max_lr: float, step_size: int) -> float:
    """Return ``η = base + (max - base) min(c, 2 n_s - c) / n_s`` with ``c = t mod 2 n_s``."""
    return base_lr + (max_lr - base_lr) * position(step, step_size)


def triangular2(step: int, base_lr: float, max_lr: float, step_size: int) -> float:
    """Return the rate of :func:`triangular`, with the amplitude halved at every new cycle."""
    amplitude = (max_lr - base_lr) * 0.5 ** (step // (2 * step_size))
    return base_lr + amplitude * position(step, step_size)


def exp_range(step: int, base_lr: float, max_lr: float, step_size: int, gamma: float) -> float:
    """Return the rate of :func:`triangular`, with an amplitude that decays as ``gamma ** step``."""
    return base_lr + (max_lr - base_lr) * position(step, step_size) * gamma**step


def rising(step: int, min_lr: float, max_lr: float, steps: int) -> float:
    """Return ``η = min (max / min) ** (t / T)`` for T updates, and max after them.

    This is the rate of the learning rate range test (Smith, 2017, section 3.3), with the same
    number of updates for each decade.

    >>> [rising(t, min_lr=0.01, max_lr=1.0, steps=2) for t in range(4)]
    [0.01, 0.1, 1.0, 1.0]
    """
    return float(min_lr * (max_lr / min_lr) ** (min(step, steps) / steps))


def position(step: int, step_size: int) -> float:
    """Return the height in the triangle, from 0 (an end of the cycle) to 1 (its middle)."""
    c = step % (2 * step_size)
    return min(c, 2 * step_size - c) / step_size


def check_cycle(base_lr: float, max_lr: float, step_size: int, gamma: float = 1.0) -> None:
    """Raise :class:`InputError`, naming the argument and its range, if there is no such cycle."""
    check_number("base_lr", base_lr)
    check_number("max_lr", max_lr)
    if base_lr > max_lr:
        raise InputError(f"base_lr must be <= max_lr, but {base_lr!r} > {max_lr!r}.")
    check_whole("step_size", step_size, at_least=1, at_most=MOST_UPDATES)
    if not is_number(gamma) or not 0 < gamma <= 1:
        raise InputError(f"gamma must be in (0, 1], not {gamma!r}.")


def step_size_for(batches: int, cycles: int) -> int:
    """Return the step size n_s with which all cycles together take :data:`EPOCHS` epochs.

    Fewer epochs leave a linear layer on features far from its minimum. Small data get at least one
    cycle's worth of updates, ``2 * STEP_SIZE``.

    Args:
        batches: batches of an epoch.
        cycles: number of cycles.

    >>> step_size_for(batches=450, cycles=1), step_size_for(batches=3, cycles=1)
    (4500, 500)
    """
    return -(-max(EPOCHS * batches, 2 * STEP_SIZE) // (2 * cycles))

"""The members of a population, and the choice of those whose predictions are averaged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from onelayer.core.errors import InputError

Metrics = Mapping[str, Sequence[float]]  # cost, loss and accuracy of each member over a split


T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Member(NamedTuple):
    """One network of a population: λ, seed, and the update at which it was saved."""

    l2: float
    seed: int
    step: int | None = None  # updates before it was saved, if checkpoints were joined

    def named(self) -> dict[str, Any]:
        """Return the values that are set, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def __str__(self) -> str:
        """Describe the member."""
        after = "" if self.step is None else f", after {self.step} updates"
        return f"l2={self.l2:g}, seed={self.seed}{after}"


class Choice(NamedTuple):
    """Members whose mean probabilities predict, and their description."""

    members: list[int]
    words: str


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return the items of each key, in the order in which the keys come.

    >>> grouped([0.1, 0.01, 0.12], key=lambda x: round(x, 1))
    {0.1: [0.1, 0.12], 0.0: [0.01]}
    """
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def by_l2(l2s: Sequence[float]) -> dict[float, list[int]]:
    """Return the indices of the members of each λ, in the order in which the λ come.

    >>> by_l2([0.1, 0.01, 0.1])
    {0.1: [0, 2], 0.01: [1]}
    """
    return grouped(range(len(l2s)), key=l2s.__getitem__)


def rank(accuracy: float, loss: float, l2: float) -> tuple[float, float, float]:
    """Return a key that sorts λ, best first: by accuracy, then lower loss, then larger λ."""
    return -accuracy, loss, -l2


def best_l2(l2s: Sequence[float], val: Metrics) -> float:
    """Return the best λ by :func:`rank` of its members' mean accuracy and loss on validation.

    λ with a diverged member rank last.
    """

    def key(l2: float) -> tuple[bool, tuple[float, float, float]]:
        finite = [m for m in groups[l2] if is_finite(val, m)]
        if not finite:
            return True, rank(-math.inf, math.inf, l2)
        accuracy, loss = (
            statistics.fmean(val[name][m] for m in finite) for name in ("accuracy", "loss")
        )
        return len(finite) < len(groups[l2]), rank(accuracy, loss, l2)

    groups = by_l2(l2s)
    return min(groups, key=key)


def is_finite(metrics: Metrics, member: int) -> bool:
    """Return whether a member has not diverged."""
    return math.isfinite(metrics["cost"][member]) and math.isfinite(metrics["loss"][member])


def choose(member: int | str, population: Sequence[Member], val: Metrics | None = None) -> Choice:
    """Select the members whose predictions are averaged.

    Args:
        member: ``best`` for the members of the λ that is best on validation, ``all``, or the index
            of one member.
        population: all members.
        val: their metrics on the validation split. Without them ``best`` of several λ means
            ``all``.

    Raises:
        InputError: there is no such member.
    """
    m = len(population)
    if member not in ("best", "all"):
        if isinstance(member, bool) or not isinstance(member, int) or not 0 <= member < m:
            raise InputError(
                f"member must be best, all, or the number of a network, 0 to {m - 1}, not "
                f"{member!r}."
            )
        return Choice([member], f"network {member} ({population[member]})")
    everyone = list(range(m))
    if m == 1:
        return Choice(everyone, f"the network ({population[0]})")
    cycles = ends_of(len({one.step for one in population} - {None}))
    l2s = [one.l2 for one in population]
    if member == "all" or (val is None and len(set(l2s)) > 1):
        why = ", because best needs metrics on validation" if member == "best" else ""
        return Choice(everyone, f"the mean of all {m} networks{cycles}{why}")
    l2 = l2s[0] if val is None else best_l2(l2s, val)
    chosen = by_l2(l2s)[l2]
    words = f"the mean of the {len(chosen)} networks of l2={l2:g}{cycles}"
    if len(chosen) == 1:
        words = f"network {chosen[0]} ({population[chosen[0]]})"
    return Choice(chosen, words + (", the best on validation" if len(set(l2s)) > 1 else ""))


def ends_of(cycles: int) -> str:
    """Return from the ends of how many cycles networks are, in words; "" for none."""
    return {0: "", 1: " at the end of a cycle"}.get(cycles, f" at the ends of {cycles} cycles")

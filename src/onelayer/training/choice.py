"""Which members of a population answer together: those of one λ, which differ in their seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from onelayer.core.errors import InputError

Figures = Mapping[str, Sequence[float]]
"""``cost``, ``loss`` and ``accuracy`` of each member over a split."""


class Member(NamedTuple):
    """What tells one network of the population from the others."""

    l2: float
    seed: int
    step: int | None = None  # updates after which a snapshot was taken; None in a training

    def named(self) -> dict[str, Any]:
        """What there is of it, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Choice(NamedTuple):
    """Members whose mean is the answer, and how a person is told which they are."""

    members: list[int]
    words: str


def by_l2(l2s: Sequence[float]) -> dict[float, list[int]]:
    """The places of each λ, in the order in which they come."""
    groups: dict[float, list[int]] = {}
    for place, l2 in enumerate(l2s):
        groups.setdefault(l2, []).append(place)
    return groups


def best_l2(l2s: Sequence[float], val: Figures) -> float:
    """The λ whose members have the highest mean accuracy on validation.

    One of which a network has diverged comes after those of which none has, and of equal accuracies
    the lower loss counts.
    """

    def rank(members: list[int]) -> tuple[bool, float, float]:
        sound = [m for m in members if is_sound(val, m)]
        if not sound:
            return False, -math.inf, -math.inf
        accuracy, loss = (
            statistics.fmean(val[name][m] for m in sound) for name in ("accuracy", "loss")
        )
        return len(sound) == len(members), accuracy, -loss

    groups = by_l2(l2s)
    return max(groups, key=lambda l2: rank(groups[l2]))


def is_sound(figures: Figures, member: int) -> bool:
    """Whether a member has not diverged."""
    return math.isfinite(figures["cost"][member]) and math.isfinite(figures["loss"][member])


def choose(member: int | str, population: Sequence[Member], val: Figures | None = None) -> Choice:
    """The members that ``member`` means: "best", "all", or the number of one.

    Args:
        member: best for those of the λ that is best on validation.
        population: the members.
        val: their figures on the validation split, which "best" needs of several λ; without them it
            is all.

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
        return Choice([member], f"network {member} ({_name(population[member])})")
    everyone = list(range(m))
    if m == 1:
        return Choice(everyone, f"the network ({_name(population[0])})")
    if member == "all":
        return Choice(everyone, f"the mean of all {m} networks{_cycles(population)}")
    l2s = [one.l2 for one in population]
    if val is None and len(set(l2s)) > 1:
        return Choice(
            everyone,
            f"the mean of all {m} networks{_cycles(population)}, as no figures on validation tell "
            "which λ is best",
        )
    l2 = l2s[0] if val is None else best_l2(l2s, val)
    chosen = by_l2(l2s)[l2]
    who = f"the mean of the {len(chosen)} networks of l2={l2:g}{_cycles(population)}"
    if len(chosen) == 1:
        who = f"network {chosen[0]} ({_name(population[chosen[0]])})"
    return Choice(chosen, who + (", the best on validation" if len(set(l2s)) > 1 else ""))


def _name(member: Member) -> str:
    after = "" if member.step is None else f", after {member.step} updates"
    return f"l2={member.l2:g}, seed={member.seed}{after}"


def _cycles(population: Sequence[Member]) -> str:
    return ends_of(len({member.step for member in population} - {None}))


def ends_of(cycles: int) -> str:
    """How a person is told that networks are of the ends of so many cycles; nothing for none."""
    return {0: "", 1: " at the end of a cycle"}.get(cycles, f" at the ends of {cycles} cycles")

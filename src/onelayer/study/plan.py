"""The search for λ from coarse to fine: what is tried, and what is chosen.

All of it is a pure function of the settings and of the figures of the stages before, so a search
that was killed, or that several processes share, plans the same networks.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from onelayer.core.checks import LARGEST_SEED, check_among, check_positive, check_whole
from onelayer.core.errors import InputError

MOST = 10_000
"""Stages, and λ in one: more than anybody trains, few enough to be planned at once."""


@dataclass(frozen=True)
class Plan:
    """Which λ are tried.

    Args:
        stages: number of stages; each but the first searches between the smallest and the largest
            of the best λ so far.
        number: λ per stage.
        l2_min: smallest λ of the first stage.
        l2_max: largest λ of the first stage.
        grid: an even grid of log10 λ instead of uniform draws.
        top: how many of the best λ span the next stage's range.
        seeds: of the initial weights; every λ is trained with each.
        seed: of the draws.
        rule: how the final λ is chosen: one_se, the largest λ whose mean is within one standard
            error of the best; or best.
        members: most networks trained at once; chosen from the free memory by default.

    Raises:
        InputError: naming the argument and its range.
    """

    stages: int = 3
    number: int = 20
    l2_min: float = 1e-5
    l2_max: float = 1e-1
    grid: bool = False
    top: int = 5
    seeds: list[int] = field(default_factory=lambda: [0])
    seed: int = 0
    rule: str = "one_se"
    members: int | None = None

    def __post_init__(self) -> None:
        for name in ("stages", "number", "top"):
            check_whole(f"search.{name}", getattr(self, name), 1, MOST)
        check_whole("search.seed", self.seed, 0)
        if self.members is not None:
            check_whole("search.members", self.members, 1)
        check_positive("search.l2_min", self.l2_min)
        check_positive("search.l2_max", self.l2_max)
        if self.l2_min > self.l2_max:
            raise InputError(
                f"search.l2_min must be <= search.l2_max, but {self.l2_min!r} > {self.l2_max!r}."
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"search.seeds must list different seeds, not {self.seeds!r}.")
        for seed in self.seeds:
            check_whole("search.seeds", seed, 0, LARGEST_SEED)
        check_among("search.rule", self.rule, ("one_se", "best"))


@dataclass(frozen=True)
class Planned:
    """One network to train; those of one stage and group are trained as one population."""

    stage: int  # from 1
    index: int  # of its λ in the stage, from 0
    group: int
    l2: float
    seed: int  # of the initial weights
    low: float  # smallest λ of the stage's range
    high: float  # largest

    @property
    def key(self) -> tuple[int, int, int]:
        """Stage, index of its λ and seed, by which a search knows it."""
        return self.stage, self.index, self.seed


def draw_l2(plan: Plan, stage: int, index: int, low: float, high: float) -> float:
    """λ number ``index`` of a stage between ``low`` and ``high``, log-uniform or on the grid.

    It depends on (seed, stage, index) and the range alone.
    """
    if plan.grid:
        share = index / (plan.number - 1) if plan.number > 1 else 0.5
    else:
        key = f"onelayer search {plan.seed} {stage} {index}".encode()
        share = int.from_bytes(hashlib.sha256(key).digest()[:7], "big") / 2**56
    log_l2 = math.log10(low) + share * (math.log10(high) - math.log10(low))
    return min(max(math.pow(10.0, log_l2), low), high)


def plan_stage(plan: Plan, stage: int, low: float, high: float, members: int) -> list[Planned]:
    """All networks of a stage, group by group.

    A group holds whole λ, with all seeds, and at most ``members`` networks (but one λ at least).
    """
    l2s_per_group = max(1, members // len(plan.seeds))
    networks = []
    for index in range(plan.number):
        group, l2 = index // l2s_per_group, draw_l2(plan, stage, index, low, high)
        networks += [Planned(stage, index, group, l2, seed, low, high) for seed in plan.seeds]
    return networks


def groups_of(networks: Sequence[Planned]) -> list[list[Planned]]:
    """The groups of a stage's networks, in their order."""
    return [list(members) for _, members in groupby(networks, key=lambda p: p.group)]


@dataclass(frozen=True)
class Candidate:
    """One λ tried: its mean validation accuracy over the seeds and the mean's standard error."""

    stage: int
    index: int
    l2: float
    mean: float
    error: float
    seeds: int


def standard_error(accuracies: Sequence[float], images: int) -> float:
    """Standard error of a mean accuracy over the choice of validation images and of seeds.

    The images are one sample, shared by all seeds: its error, ``sqrt(p(1-p)/images)``, does not
    shrink with more seeds. That of the seeds, ``s/sqrt(seeds)``, is added where there are several.
    """
    p = statistics.fmean(accuracies)
    variance = max(p * (1 - p), 0.0) / images
    if len(accuracies) > 1:
        variance += statistics.variance(accuracies) / len(accuracies)
    return math.sqrt(variance)


def aggregate(rows: Sequence[Mapping[str, Any]], images: int) -> list[Candidate]:
    """One candidate per λ: the mean over seeds. A λ with a diverged network is none.

    Args:
        rows: as in search.csv and in its order.
        images: of the validation split.
    """
    result = []
    for key, group in groupby(rows, key=lambda row: (row["stage"], row["index"], row["l2"])):
        members = list(group)
        if not any(row["diverged"] for row in members):
            accuracies = [float(row["val_accuracy"]) for row in members]
            mean = sum(accuracies) / len(accuracies)
            error = standard_error(accuracies, images)
            result.append(Candidate(*key, mean, error, len(accuracies)))
    return result


def top_range(candidates: Sequence[Candidate], top: int) -> tuple[float, float]:
    """Smallest and largest of the ``top`` best λ so far.

    Raises:
        InputError: if every network diverged.
    """
    best = ranking(candidates)[:top]
    if not best:
        raise InputError(
            "every network of the search diverged: no λ is left to go on from.\n"
            "Lower schedule.max_lr or search.l2_max."
        )
    return min(c.l2 for c in best), max(c.l2 for c in best)


def ranking(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first; of equals the larger λ, then the earlier."""
    return sorted(candidates, key=lambda c: (-c.mean, -c.l2, c.stage, c.index))


def choose(candidates: Sequence[Candidate], rule: str) -> Candidate:
    """The chosen λ: the best mean, or the largest λ within one standard error of it.

    Source of the one-standard-error rule: Breiman et al., *Classification and Regression Trees*
    (1984), section 3.4.3; Hastie et al., *The Elements of Statistical Learning*, section 7.10.
    """
    best = ranking(candidates)[0]
    if rule == "best":
        return best
    near = [c for c in candidates if c.mean >= best.mean - best.error]
    return max(near, key=lambda c: (c.l2, c.mean))

"""The search for λ from coarse to fine: the networks to train, and the choice among them.

A few values of other arguments may be searched as well. A *setting* is one combination of them.
Every setting has its own search for λ, with as many λ and the same seeds as any other.

The plan is a pure function of the settings and of the results of earlier stages. So a search that
was killed, or that several processes share, plans the same networks.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from operator import attrgetter, itemgetter
from typing import Any

from onelayer.core.checks import (
    LARGEST_SEED,
    check_among,
    check_number,
    check_positive,
    check_share,
    check_whole,
)
from onelayer.core.errors import InputError
from onelayer.training.members import grouped, rank

MOST = 10_000  # stages, and λ in one
SHOWN = 40  # settings that a table and a figure show, the best ones
AXES = {
    "flip": "data",  # first, so that the images are read again only when it changes
    "hidden": "model",
    "max_lr": "schedule",
    "dropout": "model",
    "label_smoothing": "model",
}
"""Arguments that may be searched beside λ, with the section of each."""

Setting = tuple[tuple[str, Any], ...]
"""The searched arguments with one value each, in the order of AXES; empty if only λ is searched."""


@dataclass(frozen=True)
class Plan:
    """The λ to try, and values of other arguments.

    Args:
        stages: number of stages; later stages search between the smallest and the largest of the
            best λ so far.
        number: λ per stage.
        l2_min: smallest λ of the first stage.
        l2_max: largest λ of the first stage.
        grid: even grid of log10 λ instead of random draws.
        top: number of best λ that span the next stage's range.
        seeds: seeds of the initial weights; every λ is trained with each.
        seed: seed of the draws.
        rule: rule for the final λ. one_se: the largest λ whose mean is within one standard error
            of the best. best: the best mean. Other arguments are those of the best mean.
        members: most networks trained at once; by default as many as half of the memory holds.
        hidden: numbers of hidden units to try; by default only model.hidden. Every combination of
            these and the following values has its own search for λ.
        max_lr: largest rates of the schedule to try; by default only schedule.max_lr.
        dropout: dropout probabilities to try; by default only model.dropout.
        label_smoothing: values of label smoothing to try; by default only model.label_smoothing.
        flip: random flips to try, [false, true] for without and with; by default only data.flip.

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
    hidden: list[int] | None = None
    max_lr: list[float] | None = None
    dropout: list[float] | None = None
    label_smoothing: list[float] | None = None
    flip: list[bool] | None = None

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
        for name, values in self.axes().items():
            _check_axis(f"search.{name}", values)
        number = math.prod(map(len, self.axes().values()))
        if number * self.number > MOST:
            raise InputError(
                f"search.{', search.'.join(self.axes())} make {number} settings of {self.number} λ "
                f"each (search.number), but a stage trains at most {MOST} λ."
            )

    def axes(self) -> dict[str, list[Any]]:
        """Return the arguments that are searched beside λ, with their values."""
        return {name: v for name in AXES if (v := getattr(self, name)) is not None}

    def settings(self) -> list[Setting]:
        """Return every combination of the axes' values; an empty one if only λ is searched."""
        axes = self.axes()
        return [tuple(zip(axes, values, strict=True)) for values in product(*axes.values())]

    def as_dict(self) -> dict[str, Any]:
        """Return the arguments without the axes that are not searched."""
        unused = AXES.keys() - self.axes().keys()
        return {name: v for name, v in vars(self).items() if name not in unused}


def _check_axis(name: str, values: Any) -> None:
    """Raise :class:`InputError` unless these are different, legal values of the argument."""
    if not isinstance(values, list) or not values:
        raise InputError(f"{name} must list one value or more, or be null, not {values!r}.")
    for value in values:
        match name.removeprefix("search."):
            case "hidden":
                check_whole(name, value, 0)
            case "max_lr":
                check_number(name, value)
            case "flip":
                check_among(name, value, (False, True))
            case _:
                check_share(name, value)
    if len(set(values)) < len(values):
        raise InputError(f"{name} must list different values, not {values!r}.")


@dataclass(frozen=True)
class Final:
    """The final networks, trained with the chosen λ and setting.

    Args:
        seeds: seeds of the initial weights, one network each.
        val_size: samples that still validate; the others train. By default 1000 of CIFAR-10, and
            as many as in the search of other data.
        batch_size: samples of an update; by default 200 of CIFAR-10, and as in the search of other
            data.
        step_size: n_s of the schedule; by default 600 with CIFAR-10. With other data all cycles
            together are 20 epochs by default.
        cycles: number of cycles.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    val_size: int | float | None = None
    batch_size: int | None = None
    step_size: int | None = None
    cycles: int = 5

    def __post_init__(self) -> None:
        # typing keeps one order of int and float for all optional unions of both, and jsonargparse
        # reads by it: after somebody else's Optional[Union[float, int]], 50 is read as 50.0.
        if isinstance(self.val_size, float) and self.val_size > 1 and self.val_size.is_integer():
            object.__setattr__(self, "val_size", int(self.val_size))


@dataclass(frozen=True)
class Repeat:
    """How ``onelayer report`` repeats the exercises.

    Args:
        runs: folder of the runs.
        seeds: seeds of every run's networks.
        widths: numbers of hidden units for a section on accuracy by width, 0 for linear; takes
            hours.
    """

    runs: str = "lightning_logs/report"
    seeds: list[int] = field(default_factory=lambda: list(range(10)))
    widths: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Planned:
    """One network to train; those of one stage and group are one population."""

    stage: int  # from 1
    index: int  # of its setting and λ in the stage, from 0: setting after setting
    group: int
    l2: float
    seed: int  # of the initial weights
    low: float  # smallest λ of the stage's range
    high: float  # largest
    setting: Setting = ()

    @property
    def key(self) -> tuple[int, int, int]:
        """Stage, index and seed: the identity of a network in its search."""
        return self.stage, self.index, self.seed


def draw_l2(plan: Plan, stage: int, index: int, low: float, high: float) -> float:
    """Return λ number ``index`` of a stage between ``low`` and ``high``, drawn or on the grid.

    It depends only on (seed, stage, index) and the range.
    """
    if plan.grid:
        share = index / (plan.number - 1) if plan.number > 1 else 0.5
    else:
        key = f"onelayer search {plan.seed} {stage} {index}".encode()
        share = int.from_bytes(hashlib.sha256(key).digest()[:7], "big") / 2**56
    log_l2 = math.log10(low) + share * (math.log10(high) - math.log10(low))
    return min(max(math.pow(10.0, log_l2), low), high)


def plan_stage(
    plan: Plan, stage: int, ranges: Mapping[Setting, tuple[float, float]], members: int
) -> list[Planned]:
    """Return all networks of a stage, setting by setting and group by group.

    A group has one setting and at most ``members`` networks, but at least one λ with all its seeds.
    Settings with the same range try the same λ.

    Args:
        plan: the plan.
        stage: number of the stage.
        ranges: range of λ of every setting that is still searched.
        members: most networks of a group.
    """
    l2s_per_group = max(1, members // len(plan.seeds))
    groups = math.ceil(plan.number / l2s_per_group)
    networks = []
    for place, setting in enumerate(plan.settings()):
        if setting not in ranges:
            continue
        low, high = ranges[setting]
        for i in range(plan.number):
            l2, group = draw_l2(plan, stage, i, low, high), place * groups + i // l2s_per_group
            networks += [
                Planned(stage, place * plan.number + i, group, l2, seed, low, high, setting)
                for seed in plan.seeds
            ]
    return networks


def groups_of(networks: Sequence[Planned]) -> list[list[Planned]]:
    """Return the groups of a stage's networks, in their order."""
    return list(grouped(networks, attrgetter("group")).values())


@dataclass(frozen=True)
class Candidate:
    """One λ of a setting: mean accuracy and loss on validation over the seeds, standard error."""

    stage: int
    index: int
    l2: float
    mean: float
    error: float
    seeds: int
    setting: Setting = ()
    loss: float = 0.0

    def row(self) -> dict[str, Any]:
        """Return the values that search.json keeps, the setting's arguments before λ."""
        rest = {name: getattr(self, name) for name in ("l2", "mean", "error", "seeds", "loss")}
        return {"stage": self.stage, "index": self.index, **dict(self.setting), **rest}


def standard_error(accuracies: Sequence[float], images: int) -> float:
    """Return the standard error of a mean accuracy over validation images and seeds.

    All seeds share the images, so more seeds do not reduce the images' error
    ``sqrt(p(1-p)/images)``. The seeds' error ``s/sqrt(seeds)`` is added if there are several.
    """
    p = statistics.fmean(accuracies)
    variance = max(p * (1 - p), 0.0) / images
    if len(accuracies) > 1:
        variance += statistics.variance(accuracies) / len(accuracies)
    return math.sqrt(variance)


def aggregate(rows: Sequence[Mapping[str, Any]], images: int) -> list[Candidate]:
    """Return the mean over seeds of every setting and λ without a diverged network.

    Args:
        rows: rows of search.csv, in its order.
        images: number of validation images.
    """
    result = []
    for (stage, index, l2), members in grouped(rows, itemgetter("stage", "index", "l2")).items():
        if not any(row["diverged"] for row in members):
            accuracies = [float(row["val_accuracy"]) for row in members]
            mean, error = sum(accuracies) / len(accuracies), standard_error(accuracies, images)
            loss = statistics.fmean(float(row["val_loss"]) for row in members)
            setting = setting_of(members[0])
            result.append(Candidate(stage, index, l2, mean, error, len(accuracies), setting, loss))
    return result


def setting_of(row: Mapping[str, Any]) -> Setting:
    """Return the setting of a row of search.csv."""
    return tuple((name, row[name]) for name in AXES if name in row)


def format_setting(setting: Setting) -> str:
    """Return the searched arguments beside λ, as on a command line."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in setting)


def next_ranges(plan: Plan, candidates: Sequence[Candidate]) -> dict[Setting, tuple[float, float]]:
    """Return each setting's range of λ in the next stage, from its own best λ so far.

    Settings differ in their best λ: more hidden units or a higher rate may need another. A setting
    whose λ all diverged is not searched further.

    Raises:
        InputError: if every network diverged.
    """
    if not candidates:
        largest = "search.max_lr" if plan.max_lr else "schedule.max_lr"
        raise InputError(
            "every network of the search diverged: no λ is left to go on from.\n"
            f"Lower {largest} or search.l2_max."
        )
    by_setting = grouped(candidates, attrgetter("setting"))
    return {setting: top_range(own, plan.top) for setting, own in by_setting.items()}


def top_range(candidates: Sequence[Candidate], top: int) -> tuple[float, float]:
    """Return the smallest and the largest of the ``top`` best λ so far."""
    best = ranking(candidates)[:top]
    return min(c.l2 for c in best), max(c.l2 for c in best)


def ranking(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Sort by :func:`~onelayer.training.members.rank`, best first."""
    return sorted(candidates, key=lambda c: (rank(c.mean, c.loss, c.l2), c.stage, c.index))


def best_of_each(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the best λ of every setting, the best setting first."""
    by_setting = grouped(ranking(candidates), attrgetter("setting"))
    return [own[0] for own in by_setting.values()]


def end_of(l2: float, tried: Iterable[float]) -> str:
    """Return "largest" or "smallest" if λ is at an end of several that were tried, else "".

    >>> end_of(0.1, [0.001, 0.1]), end_of(0.1, [0.1]), end_of(0.1, [0.01, 0.1, 1.0])
    ('largest', '', '')
    """
    low, high = min(values := list(tried)), max(values)
    if low == high:
        return ""
    return {high: "largest", low: "smallest"}.get(l2, "")


def warn_of_end(l2: float, tried: Iterable[float], section: str, listed: bool = False) -> list[str]:
    """Return advice if λ is at an end of those that were tried.

    Args:
        l2: the chosen λ.
        tried: all of them.
        section: section of the options: "search." or "solve.".
        listed: whether they were listed, as l2.
    """
    if not (end := end_of(l2, tried)):
        return []
    largest = end == "largest"
    advice = f"raise --{section}l2_max" if largest else f"lower --{section}l2_min"
    if section == "search.":
        advice += ",\n  or search more of them (--search.number)"
    if listed:
        advice = f"give {'larger' if largest else 'smaller'} --{section}l2"
    return [f"the chosen l2 = {l2:.4g} is the {end} that was tried: {advice}"]


def choose(candidates: Sequence[Candidate], rule: str) -> Candidate:
    """Return the best mean, or the largest λ within one standard error of it.

    By either rule the setting is that of the best mean; one_se chooses only among its λ. A larger λ
    is a simpler network, so one_se prefers it to a λ that is not measurably better. Settings have
    no such order: fewer hidden units may go with a higher rate.

    Source of the one-standard-error rule: Breiman et al., *Classification and Regression Trees*
    (1984), section 3.4.3; Hastie et al., *The Elements of Statistical Learning*, section 7.10.
    """
    best = ranking(candidates)[0]
    if rule == "best":
        return best
    own = [c for c in candidates if c.setting == best.setting]
    near = [c for c in own if c.mean >= best.mean - best.error]
    return max(ranking(near), key=attrgetter("l2"))

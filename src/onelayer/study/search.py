"""``onelayer search``: trains what the plan says, keeps the ledger, trains the final network."""

from __future__ import annotations

import gc
import inspect
import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL

from onelayer.core.checks import check_same, check_share
from onelayer.core.errors import InputError
from onelayer.data.adapter import count_rows, has_split, name_of, sizes
from onelayer.study.data_settings import make_data, with_arguments, without_locations
from onelayer.study.ledger import Ledger, is_finite
from onelayer.study.plan import (
    AXES,
    Candidate,
    Plan,
    Planned,
    Setting,
    aggregate,
    choose,
    format_setting,
    groups_of,
    next_ranges,
    plan_stage,
)
from onelayer.study.plots import plot_search
from onelayer.study.runs import (
    alone_in,
    check_training,
    make_trainer,
    train_and_test,
    with_length,
)
from onelayer.study.tables import format_candidates, format_csv
from onelayer.training.curves import Curves
from onelayer.training.divergence import Divergence
from onelayer.training.files import atomic_write, write_json
from onelayer.training.memory import check_making, members_in_memory
from onelayer.training.metrics import QUANTITIES
from onelayer.training.module import OneLayer
from onelayer.training.progress import Bar, ProgressLine, clear_bars
from onelayer.training.records import last_figures
from onelayer.training.schedule import TriangularLR
from onelayer.training.summary import format_summary

POLL = 1.0
"""Seconds between two questions for work while other processes train the rest of a stage."""


@dataclass(frozen=True)
class Final:
    """The final training, with the chosen setting and λ.

    Args:
        seeds: of the initial weights; one network each.
        val_size: images that still validate; the others train. By default 1000 of CIFAR-10, and
            of other data as many as in the search.
        batch_size: images of an update. By default 200, and of other data as in the search.
        step_size: n_s of its schedule. By default 600 with CIFAR-10, and with other data as
            many that all cycles together are 20 epochs.
        cycles: how many.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    val_size: int | float | None = None
    batch_size: int | None = None
    step_size: int | None = None
    cycles: int = 5


@dataclass(frozen=True)
class Search:
    """One search: everything that decides its outcome, and where it is kept.

    Args:
        plan: which λ, and which values of other arguments; the following hold where it has none.
        hidden: hidden units.
        data: arguments of CIFAR10DataModule, or class_path and init_args of another data module.
        schedule: arguments of TriangularLR, of the stages.
        final: the final training.
        output: folder for search.csv, search.png, best.yaml, search.json, search.db and final/.
        storage: database of the ledger; SQLite in ``output`` by default.
        dropout: probability that a hidden unit is left out of an update.
        label_smoothing: the share of every label that is spread over all classes.
        trainer: flags of every training's Trainer, such as precision.
        curves: arguments of Curves, of the final training.
        test: arguments of Results, of the final training.
    """

    plan: Plan
    hidden: int
    data: Mapping[str, Any]
    schedule: Mapping[str, Any]
    final: Final
    output: Path
    storage: str | None = None
    dropout: float = 0.0
    label_smoothing: float = 0.0
    trainer: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What the ledger is compared by: all but where the images come from."""
        data = without_locations(self.data)
        groups = {
            "model": self.model(()),
            "search": self.plan.as_dict(),
            "data": data | data.pop("init_args", {}) if "class_path" in data else data,
            "schedule": dict(self.schedule),
            "trainer": dict(self.trainer),
        }
        flat = {f"{group}.{k}": v for group, values in groups.items() for k, v in values.items()}
        # The rule is applied afterwards: it may be changed without training anything again.
        unused = {"search.rule", "search.members", *(f"{AXES[n]}.{n}" for n in self.plan.axes())}
        return {k: v for k, v in flat.items() if k not in unused}

    def model(self, setting: Setting) -> dict[str, Any]:
        """The arguments of OneLayer that a setting decides."""
        usual = {"dropout": self.dropout, "label_smoothing": self.label_smoothing}
        given = {"hidden": self.hidden, **{name: v for name, v in usual.items() if v}}
        return given | _of("model", setting)

    def final_settings(self, l2: float, setting: Setting = ()) -> dict[str, Any]:
        """Of the final training, as :data:`onelayer.study.runs.Settings`."""
        final, rates = self.final, {**self.schedule, **_of("schedule", setting)}
        step_size = final.step_size or (None if "class_path" in self.data else 600)
        # Of CIFAR-10 every measurement is of the whole training split, as in the report.
        usual: dict[str, Any] = {} if "class_path" in self.data else {"train_rows": None}
        sections = {"trainer": self.trainer, "curves": {**usual, **self.curves}, "test": self.test}
        return {
            "model": {**self.model(setting), "l2": l2, "seeds": list(final.seeds)},
            "data": with_arguments(_with_data(self.data, setting), **self._final_data()),
            "schedule": {**rates, "step_size": step_size, "cycles": final.cycles},
            **{k: dict(v) for k, v in sections.items() if v},
        }

    def _final_data(self) -> dict[str, Any]:
        """The arguments of data that the final training has of its own."""
        own = "class_path" in self.data
        usual = {} if own else {"val_size": 1000, "batch_size": 200}
        asked = {"val_size": self.final.val_size, "batch_size": self.final.batch_size}
        given = (self.data.get("init_args") or {}) if own else self.data
        for name in ("val", "val_batches"):
            if given.get(name) is None:
                continue
            usual.pop("val_size", None)
            if self.final.val_size is not None:
                raise InputError(
                    f"final.val_size is {self.final.val_size}, but data.{name} says what "
                    f"validates.\nLeave final.val_size out, or data.{name}."
                )
        return usual | {k: v for k, v in asked.items() if v is not None}

    def check(self) -> LightningDataModule:
        """The data, if they, the schedule and the final training can be had with every setting.

        Raises:
            InputError: now, not after all stages, for settings that something would refuse.
        """
        data = self._make_data()
        if check_batch_size := getattr(data, "check_batch_size", None):
            check_batch_size()
        if not has_split(data, "val"):
            raise InputError("a search needs a validation split: set data.val_size or val_batches.")
        at_once = min(self.plan.members or 1, self.plan.number * len(self.plan.seeds))
        made: dict[bool | None, LightningDataModule] = {}  # of the final training, by flip
        for setting in self.plan.settings():
            TriangularLR(**{**self.schedule, **_of("schedule", setting)})
            check_making(at_once, self.model(setting)["hidden"], *sizes(data))
            final, flip = self.final_settings(self.plan.l2_max, setting), dict(setting).get("flip")
            try:
                made[flip] = made.get(flip) or make_data(final["data"])
                check_training({**final, "data": made[flip]})
            except InputError as error:
                raise InputError(f"of the final training, final.…: {error}") from error
        if verify := getattr(data, "verify_test", None):
            verify()
        return data

    def _make_data(self) -> LightningDataModule:
        """The data module, if what is searched suits it and the networks."""
        check_share("model.dropout", self.dropout)
        check_share("model.label_smoothing", self.label_smoothing)
        data, models = make_data(self.data), [self.model(s) for s in self.plan.settings()]
        flips = "flip" in inspect.signature(type(data)).parameters
        if self.plan.flip and not (flips and len(getattr(data, "shape", (1, 1, 1))) == 3):
            raise InputError(
                f"search.flip mirrors images: the samples of {type(data).__name__} are none, or it "
                "has no argument flip.\nLeave search.flip out."
            )
        if any(model.get("dropout") and not model["hidden"] for model in models):
            raise InputError(
                "dropout drops hidden units, but a setting with dropout has none (hidden 0):\n"
                "leave 0 out of search.hidden (model.hidden), or all but 0 out of search.dropout "
                "(model.dropout)."
            )
        return data

    def run(self) -> dict[str, Any]:
        """Run it, or what is left of it, and return what search.json holds.

        Raises:
            InputError: as :meth:`check`; if every network diverged, or the ledger is another
                search's.
        """
        data = self.check()
        there = self.output.exists()
        self.output.mkdir(parents=True, exist_ok=True)
        storage = self.storage or URL.create("sqlite", database=str(self.output / "search.db"))
        try:
            known = {**self.settings(), "dataset": name_of(data)}
            if rows := getattr(data, "rows", None):
                known["rows"] = rows  # a file of another content is another search
            ledger = Ledger(storage, self.output.name, known)
        except InputError:
            if not there:
                with suppress(OSError):  # somebody else's files are in it
                    self.output.rmdir()
            raise
        with closing(ledger):
            rows, candidates = self._run_stages(ledger, data)
            with alone_in(self.output):
                content, folder = self._finish(rows, candidates, name_of(data))
        left = f"search.csv, search.png, best.yaml, {folder.name}/"
        print(f"search: {self.output} ({left})\ntrials: {ledger.title}", flush=True)
        return content

    def _run_stages(
        self, ledger: Ledger, data: LightningDataModule
    ) -> tuple[list[dict[str, Any]], list[Candidate]]:
        """The rows of search.csv, and the settings and λ to choose from."""
        members, images = self._members(ledger, data), count_rows(data, "val")
        ranges = dict.fromkeys(self.plan.settings(), (self.plan.l2_min, self.plan.l2_max))
        rows: list[dict[str, Any]] = []
        candidates: list[Candidate] = []
        steps = self._schedule(data, ()).total_steps  # no axis changes how long a run is
        before = set[tuple[float, float]]()
        with Bar("search", math.inf, "updates") as bar:
            for stage in range(1, self.plan.stages + 1):
                plan = plan_stage(self.plan, stage, ranges, members)
                left = steps * len(groups_of(plan)) * (self.plan.stages - stage + 1)
                bar.expect(f"search {stage}/{self.plan.stages}", bar.n + left)
                self._train_stage(ledger, plan, data, steps, bar, before)
                before = set(ranges.values())
                rows += rows_of(ledger.trials(), plan)
                candidates = aggregate(rows, images)
                with alone_in(self.output):
                    atomic_write(self.output / "search.csv", format_csv(rows))
                ranges = next_ranges(self.plan, candidates)  # refuses if nothing is left
                bar.words = f"best val {100 * max(c.mean for c in candidates):.2f} %"
        return rows, candidates

    def _members(self, ledger: Ledger, data: LightningDataModule) -> int:
        """Networks trained at once: kept in the ledger, because the groups are planned by it."""
        wanted = self.plan.members
        hidden = {self.model(setting)["hidden"] for setting in self.plan.settings()}
        fit = min(members_in_memory(h, *sizes(data)) for h in hidden)
        kept = int(ledger.keep("members", wanted or fit))
        here, saved = {"search.members": wanted or kept}, {"search.members": kept}
        check_same("the ledger", here, saved, "Leave it out.")
        return kept

    def _train_stage(
        self,
        ledger: Ledger,
        plan: Sequence[Planned],
        data: LightningDataModule,
        steps: int,
        bar: Bar,
        before: Collection[tuple[float, float]],
    ) -> None:
        """Train the groups of a stage that nobody else trains, until all are finished.

        ``before`` are the ranges of the stage before.

        The bar counts the ``steps`` of each group, whoever trains it.
        """
        clear_bars()
        by_range: dict[tuple[float, float], list[Setting]] = {}
        for low, high, setting in dict.fromkeys((p.low, p.high, p.setting) for p in plan):
            by_range.setdefault((low, high), []).append(setting)
        for (low, high), settings in by_range.items():
            stage, span = f"stage {plan[0].stage} of {self.plan.stages}", f"[{low:.3g}, {high:.3g}]"
            several = len(settings) > 1
            whose = f"each of {len(settings)} settings" if several else format_setting(settings[0])
            words = f"{self.plan.number} l2 in {span}" + (f", {whose}" if whose else "")
            if (low, high) in before:
                words += "\n  (as before: both ends are still among the best; new l2 between them)"
            print(f"{stage}: {words}", flush=True)
        made = dict[str, Any]()  # of the setting, what the data were made with
        done, groups = bar.n, len(groups_of(plan))
        while left := len(ledger.unfinished(plan)):
            bar.skip(done + steps * (groups - left))
            with ledger.claim(plan) as group:
                if group is not None:
                    if (own := _of("data", group[0].setting)) != made:
                        gc.collect()  # trainer, module and data refer to each other
                        data, made = make_data(_with_data(self.data, group[0].setting)), own
                    ledger.record(group, self.train(group, data, bar))
            if group is None:
                time.sleep(POLL)  # others train the rest
        bar.skip(done + steps * groups)

    def _schedule(self, data: LightningDataModule, setting: Setting) -> TriangularLR:
        return TriangularLR(**with_length({**self.schedule, **_of("schedule", setting)}, data))

    def train(
        self, group: Sequence[Planned], data: LightningDataModule, bar: Bar | None = None
    ) -> list[dict[str, float]]:
        """Train a group as one population; each network's final figures."""
        l2s, setting = list(dict.fromkeys(planned.l2 for planned in group)), group[0].setting
        d, k = sizes(data)
        seeds = list(self.plan.seeds)
        model = OneLayer(**self.model(setting), l2=l2s, seeds=seeds, inputs=d, classes=k)
        schedule = self._schedule(data, setting)
        curves = Curves(per_cycle=1)
        callbacks = [schedule, curves, Divergence(stop=False), ProgressLine("search", bar)]
        trainer = make_trainer(schedule.total_steps, callbacks, **self.trainer)
        trainer.fit(model, datamodule=data)
        figures: dict[tuple[float, int], dict[str, float]] = {}
        for split in ("train", "val"):
            for row in last_figures(curves.rows, split):
                values = {f"{split}_{name}": getattr(row, name) for name in QUANTITIES}
                figures.setdefault((row.l2, row.seed), {}).update(values)
        return [figures[planned.l2, planned.seed] for planned in group]

    def _finish(
        self, rows: Sequence[Mapping[str, Any]], candidates: Sequence[Candidate], dataset: str
    ) -> tuple[dict[str, Any], Path]:
        """Choose, train with the choice, measure once on the test split, and write what is left."""
        best, one_se, chosen = (choose(candidates, r) for r in ("best", "one_se", self.plan.rule))
        plot_search(rows, candidates, chosen, best, self.output / "search.png", dataset)
        print(format_candidates(rows, candidates, best, one_se, chosen, self.plan.rule), flush=True)

        setting, l2 = chosen.setting, chosen.l2
        settings = self.final_settings(l2, setting)
        data = _with_data(without_locations(settings["data"]), setting)
        typed = {**settings, "data": dict(data)}
        also = f" and {format_setting(setting)}" if setting else ""
        head = f"# The final networks of a search, with the λ it chose{also}.\n"
        atomic_write(self.output / "best.yaml", head + yaml.safe_dump(typed, sort_keys=False))
        words = format_setting(setting).split()
        # Another rule may choose another λ later.
        folder = self.output / "-".join(["final", *words, f"{l2:.6g}"])
        summary = train_and_test(settings, folder, "final networks")
        chose = ", ".join([f"l2 = {l2:.4g}", *words])
        print(f"\nfinal networks, {chose}\n{format_summary(summary)}", flush=True)
        content = {
            "settings": self.settings(),
            "candidates": [c.row() for c in candidates],
            "best": best.row(),
            "one_se": one_se.row(),
            "rule": self.plan.rule,
            **dict(setting),
            "l2": l2,
            "final": summary,
        }
        write_json(self.output / "search.json", content)
        return content, folder


def _of(section: str, setting: Setting) -> dict[str, Any]:
    """The arguments of one section that a setting decides."""
    return {name: value for name, value in setting if AXES[name] == section}


def _with_data(data: Mapping[str, Any], setting: Setting) -> Mapping[str, Any]:
    """The arguments of data, with those that a setting decides."""
    if not (own := _of("data", setting)):
        return data
    if "class_path" not in data:
        return {**data, **own}
    return {**data, "init_args": {**(data.get("init_args") or {}), **own}}


def rows_of(trials: Mapping[Any, FrozenTrial], plan: Sequence[Planned]) -> list[dict[str, Any]]:
    """The finished networks of a stage, as search.csv has them."""
    names = [f"{split}_{name}" for split in ("train", "val") for name in QUANTITIES]
    rows = []
    for planned in plan:
        figures = {name: trials[planned.key].user_attrs[name] for name in names}
        known = {"stage": planned.stage, "index": planned.index, **dict(planned.setting)}
        known |= {"l2": planned.l2, "seed": planned.seed}
        rows.append({**known, **figures, "diverged": not is_finite(figures)})
    return rows

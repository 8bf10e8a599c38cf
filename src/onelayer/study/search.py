"""``onelayer search``: train the planned networks, choose λ, train the final networks."""

from __future__ import annotations

import gc
import inspect
import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL

from onelayer.core.checks import check_same
from onelayer.core.errors import InputError
from onelayer.data.adapter import count_rows, has_split, name_of, shape_of, sizes, verify
from onelayer.study.comparison_figures import plot_search
from onelayer.study.data_settings import make_data, with_arguments, without_locations
from onelayer.study.formatting import format_candidates, format_csv
from onelayer.study.plan import (
    AXES,
    Candidate,
    Final,
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
from onelayer.study.run import (
    alone_in,
    check_training,
    train_and_test,
    train_through,
    with_length,
)
from onelayer.study.trial_database import TrialDatabase, is_finite
from onelayer.training.curves import Curves
from onelayer.training.files import atomic_write, write_json
from onelayer.training.members import grouped
from onelayer.training.memory import check_making, members_in_memory
from onelayer.training.progress import Bar, ProgressLine, clear_bars
from onelayer.training.records import QUANTITIES, last_figures, quantities
from onelayer.training.schedule import TriangularLR
from onelayer.training.summary import format_summary

POLL = 1.0  # seconds between two attempts to claim a group while other processes train the rest


@dataclass(frozen=True)
class Search:
    """A search for λ: everything that decides its outcome, and where it is kept.

    Args:
        plan: the λ, and values of other arguments, which replace those below.
        model: arguments of OneLayer: hidden, dropout and label_smoothing.
        data: arguments of CIFAR10DataModule, or class_path and init_args of another data module.
        schedule: arguments of TriangularLR, for the stages.
        final: the final networks.
        output: folder for search.csv, search.png, best.yaml, search.json, search.db and final/.
        storage: URL of the trial database; by default SQLite in ``output``.
        trainer: flags of every run's Trainer, such as precision.
        curves: arguments of Curves, for the final networks.
        test: arguments of Results, for the final networks.
    """

    plan: Plan
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    schedule: Mapping[str, Any]
    final: Final
    output: Path
    storage: str | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Return the settings that identify the search: all but where the images are."""
        data = without_locations(self.data)
        groups = {
            "model": self.model_of(()),
            "search": self.plan.as_dict(),
            "data": data | data.pop("init_args", {}) if "class_path" in data else data,
            "schedule": dict(self.schedule),
            "trainer": {k: v for k, v in self.trainer.items() if k != "devices"},
        }
        flat = {f"{group}.{k}": v for group, values in groups.items() for k, v in values.items()}
        # The rule is applied afterwards: it may change without training anything again.
        unused = {"search.rule", "search.members", *(f"{AXES[n]}.{n}" for n in self.plan.axes())}
        return {k: v for k, v in flat.items() if k not in unused}

    def model_of(self, setting: Setting) -> dict[str, Any]:
        """Return the arguments of OneLayer for a setting."""
        used = {name: value for name, value in self.model.items() if value or name == "hidden"}
        return used | _of("model", setting)

    def data_of(self, setting: Setting) -> Mapping[str, Any]:
        """Return the settings of the data for a setting."""
        return _with_data(self.data, setting)

    def schedule_of(self, setting: Setting) -> dict[str, Any]:
        """Return the arguments of TriangularLR for a setting."""
        return {**self.schedule, **_of("schedule", setting)}

    def final_settings(self, l2: float, setting: Setting = ()) -> dict[str, Any]:
        """Return the settings of the final run, by section."""
        final = self.final
        cifar10 = "class_path" not in self.data
        step_size = final.step_size or (600 if cifar10 else None)
        # As in the published report, CIFAR-10's whole training split is measured.
        curves = {**({"train_rows": None} if cifar10 else {}), **self.curves}
        sections = {"trainer": self.trainer, "curves": curves, "test": self.test}
        return {
            "model": {**self.model_of(setting), "l2": l2, "seeds": list(final.seeds)},
            "data": with_arguments(self.data_of(setting), **self._final_data(cifar10)),
            "schedule": {
                **self.schedule_of(setting), "step_size": step_size, "cycles": final.cycles,
            },
            **{k: dict(v) for k, v in sections.items() if v},
        }  # fmt: skip

    def _final_data(self, cifar10: bool) -> dict[str, Any]:
        """Return the arguments of data that differ in the final run."""
        asked = {"val_size": self.final.val_size, "batch_size": self.final.batch_size}
        values: dict[str, Any] = {"val_size": 1000, "batch_size": 200} if cifar10 else {}
        values |= {k: v for k, v in asked.items() if v is not None}
        given = self.data if cifar10 else self.data.get("init_args") or {}
        name = next((name for name in ("val", "val_batches") if given.get(name) is not None), None)
        if name is not None and self.final.val_size is not None:
            raise InputError(
                f"final.val_size is {self.final.val_size}, but data.{name} is what validates.\n"
                f"Leave out final.val_size or data.{name}."
            )
        if name is not None:
            values.pop("val_size", None)
        return values

    def check(self) -> LightningDataModule:
        """Return the data, if every run of the search can be made with them.

        Raises:
            InputError: now, not after all stages, for settings that a run would refuse.
        """
        data = make_data(self.data)
        flips = "flip" in inspect.signature(type(data)).parameters
        if self.plan.flip and not (flips and len(shape_of(data)) == 3):
            raise InputError(
                f"search.flip flips images, but {type(data).__name__} has no argument flip, or its "
                "samples are no images.\nLeave out search.flip."
            )
        if not has_split(data, "val"):
            raise InputError("a search needs a validation split: set data.val_size or val_batches.")
        at_once = min(self.plan.members or 1, self.plan.number * len(self.plan.seeds))
        made: dict[bool | None, LightningDataModule] = {}  # for the final run, by flip
        for setting in self.plan.settings():
            stage = {"model": self.model_of(setting), "schedule": self.schedule_of(setting)}
            check_making(at_once, stage["model"]["hidden"], *sizes(data))
            final, flip = self.final_settings(self.plan.l2_max, setting), dict(setting).get("flip")
            whose = "the search"
            try:
                check_training({**stage, "data": data})
                whose = "the final training, final.…"
                made[flip] = made.get(flip) or make_data(final["data"])
                check_training({**final, "data": made[flip]})
            except InputError as error:
                words = f", {format_setting(setting)}" if setting else ""
                raise InputError(f"of {whose}{words}: {error}") from error
        verify(data)
        return data

    def run(self) -> dict[str, Any]:
        """Run the search, or the rest of it, and return the content of search.json.

        Raises:
            InputError: as :meth:`check`; also if every network diverged, or if the trial database
                belongs to another search.
        """
        data = self.check()
        there = self.output.exists()
        self.output.mkdir(parents=True, exist_ok=True)
        storage = self.storage or URL.create("sqlite", database=str(self.output / "search.db"))
        try:
            known = {**self.settings(), "dataset": name_of(data)}
            if rows := getattr(data, "rows", None):
                known["rows"] = rows  # a file with other content is another search
            database = TrialDatabase(storage, self.output.name, known)
        except InputError:
            if not there:
                with suppress(OSError):  # it holds files of another process
                    self.output.rmdir()
            raise
        with closing(database):
            rows, candidates = self._run_stages(database, data)
            with alone_in(self.output):
                content, folder = self._finish(rows, candidates, name_of(data))
        left = "search.csv, search.png, best.yaml, …"
        print(f"search: {self.output} ({left})\nrun: {folder}", flush=True)
        print(database.title, flush=True)
        return content

    def _run_stages(
        self, database: TrialDatabase, data: LightningDataModule
    ) -> tuple[list[dict[str, Any]], list[Candidate]]:
        """Return the rows of search.csv, and the candidates to choose from."""
        members, images = self._members(database, data), count_rows(data, "val")
        ranges = dict.fromkeys(self.plan.settings(), (self.plan.l2_min, self.plan.l2_max))
        rows: list[dict[str, Any]] = []
        candidates: list[Candidate] = []
        steps = self._schedule(data, ()).total_steps  # no axis changes the length of a run
        before = set[tuple[float, float]]()
        with Bar("search", math.inf, "updates") as bar:
            for stage in range(1, self.plan.stages + 1):
                plan = plan_stage(self.plan, stage, ranges, members)
                left = steps * len(groups_of(plan)) * (self.plan.stages - stage + 1)
                bar.expect(f"search {stage}/{self.plan.stages}", bar.n + left)
                self._announce(plan, before)
                self._train_stage(database, plan, data, steps, bar)
                before = set(ranges.values())
                rows += rows_of(database.trials(), plan)
                candidates = aggregate(rows, images)
                with alone_in(self.output):
                    atomic_write(self.output / "search.csv", format_csv(rows))
                ranges = next_ranges(self.plan, candidates)  # refuses if nothing is left
                bar.words = f"best val {100 * max(c.mean for c in candidates):.2f} %"
        return rows, candidates

    def _members(self, database: TrialDatabase, data: LightningDataModule) -> int:
        """Return the number of networks trained at once, kept because the plan depends on it."""
        wanted = self.plan.members
        hidden = {self.model_of(setting)["hidden"] for setting in self.plan.settings()}
        fit = min(members_in_memory(h, *sizes(data)) for h in hidden)
        kept = int(database.keep("members", wanted or fit))
        here, saved = {"search.members": wanted or kept}, {"search.members": kept}
        check_same("the trial database", here, saved, "Leave it out.")
        return kept

    def _announce(self, plan: Sequence[Planned], before: Collection[tuple[float, float]]) -> None:
        """Print the ranges of λ of a stage; ``before`` are those of the stage before."""
        clear_bars()
        for (low, high), own in grouped(plan, attrgetter("low", "high")).items():
            settings = list(dict.fromkeys(planned.setting for planned in own))
            several = len(settings) > 1
            whose = f"each of {len(settings)} settings" if several else format_setting(settings[0])
            words = f"{self.plan.number} l2 in [{low:.3g}, {high:.3g}]"
            words += f", {whose}" if whose else ""
            if (low, high) in before:
                words += "\n  (as before: both ends are still among the best; new l2 between them)"
            print(f"stage {plan[0].stage} of {self.plan.stages}: {words}", flush=True)

    def _train_stage(
        self,
        database: TrialDatabase,
        plan: Sequence[Planned],
        data: LightningDataModule,
        steps: int,
        bar: Bar,
    ) -> None:
        """Train the groups of a stage that no other process trains, until all are finished.

        The bar counts the ``steps`` of each group, whichever process trains it.
        """
        made = dict[str, Any]()  # the setting's arguments of the data at hand
        done, groups = bar.n, len(groups_of(plan))
        while left := len(database.unfinished(plan)):
            bar.skip(done + steps * (groups - left))
            with database.claim(plan) as group:
                if group is not None:
                    if (own := _of("data", group[0].setting)) != made:
                        gc.collect()  # trainer, module and data refer to each other
                        data, made = make_data(self.data_of(group[0].setting)), own
                    database.record(group, self.train(group, data, bar))
            if group is None:
                time.sleep(POLL)
        bar.skip(done + steps * groups)

    def _schedule(self, data: LightningDataModule, setting: Setting) -> TriangularLR:
        return TriangularLR(**with_length(self.schedule_of(setting), data))

    def train(
        self, group: Sequence[Planned], data: LightningDataModule, bar: Bar | None = None
    ) -> list[dict[str, float]]:
        """Train a group as one population and return each network's final results."""
        l2s, setting = list(dict.fromkeys(planned.l2 for planned in group)), group[0].setting
        model = {**self.model_of(setting), "l2": l2s, "seeds": list(self.plan.seeds)}
        schedule, settings = (
            self._schedule(data, setting),
            {"model": model, "trainer": self.trainer},
        )
        curves, line = Curves(per_cycle=1), ProgressLine("search", bar)
        rows = train_through(settings, data, schedule, schedule.total_steps, curves, line)
        results: dict[tuple[float, int], dict[str, float]] = {}
        for split in ("train", "val"):
            for row in last_figures(rows, split):
                names = quantities(row._asdict())
                values = {f"{split}_{name}": getattr(row, name) for name in names}
                results.setdefault((row.l2, row.seed), {}).update(values)
        return [results[planned.l2, planned.seed] for planned in group]

    def _finish(
        self, rows: Sequence[Mapping[str, Any]], candidates: Sequence[Candidate], dataset: str
    ) -> tuple[dict[str, Any], Path]:
        """Choose, train the final networks, measure the test split once, and write the files."""
        best, one_se, chosen = (choose(candidates, r) for r in ("best", "one_se", self.plan.rule))
        plot_search(rows, candidates, chosen, best, self.output / "search.png", dataset)
        print(format_candidates(rows, candidates, best, one_se, chosen, self.plan.rule), flush=True)

        setting, l2 = chosen.setting, chosen.l2
        settings = self.final_settings(l2, setting)
        typed = {**settings, "data": dict(_with_data(without_locations(settings["data"]), setting))}
        also = f" and {format_setting(setting)}" if setting else ""
        head = f"# The final networks of a search, with the λ it chose{also}.\n"
        atomic_write(self.output / "best.yaml", head + yaml.safe_dump(typed, sort_keys=False))
        words = format_setting(setting).split()
        # Another rule may choose another λ later.
        folder = self.output / "-".join(["final", *words, f"{l2:.6g}"])
        summary = train_and_test(settings, folder, "final networks").summary
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
    """Return the values of a setting that are arguments of this section."""
    return {name: value for name, value in setting if AXES[name] == section}


def _with_data(data: Mapping[str, Any], setting: Setting) -> Mapping[str, Any]:
    """Return the arguments of the data, overridden by those of the setting."""
    own = _of("data", setting)
    if "class_path" in data and own:
        return {**data, "init_args": {**(data.get("init_args") or {}), **own}}
    return {**data, **own}


def rows_of(trials: Mapping[Any, FrozenTrial], plan: Sequence[Planned]) -> list[dict[str, Any]]:
    """Return the finished networks of a stage as rows of search.csv."""
    names = [f"{split}_{name}" for split in ("train", "val") for name in QUANTITIES]
    rows = []
    for planned in plan:
        known = trials[planned.key].user_attrs
        figures = {name: known[name] for name in names if name in known}
        known = {"stage": planned.stage, "index": planned.index, **dict(planned.setting)}
        known |= {"l2": planned.l2, "seed": planned.seed}
        rows.append({**known, **figures, "diverged": not is_finite(figures)})
    return rows

"""``onelayer search``: trains what the plan says, keeps the ledger, trains the final network."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL

from onelayer.core.errors import InputError
from onelayer.core.network import parameter_shapes
from onelayer.data.datamodule import CIFAR10DataModule, without_locations
from onelayer.data.sources import Labelled
from onelayer.data.splits import Split
from onelayer.study.ledger import Ledger, is_finite
from onelayer.study.plan import Candidate, Plan, Planned, aggregate, choose, plan_stage, top_range
from onelayer.study.plots import plot_search
from onelayer.study.runs import make_trainer, train_and_test
from onelayer.study.tables import format_candidates, format_csv
from onelayer.training.curves import Curves
from onelayer.training.divergence import Divergence
from onelayer.training.files import atomic_write
from onelayer.training.measure import CHUNK, QUANTITIES
from onelayer.training.module import OneLayer
from onelayer.training.records import last_figures
from onelayer.training.results import format_summary, write_json
from onelayer.training.schedule import TriangularLR

POLL = 1.0
"""Seconds between two questions for work while other processes train the rest of a stage."""


@dataclass(frozen=True)
class Final:
    """The final training, with the chosen λ.

    Args:
        seeds: of the initial weights; one network each.
        val_size: images that still validate; the others train.
        batch_size: images of an update.
        step_size: n_s of its schedule.
        cycles: how many.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    val_size: int = 1000
    batch_size: int = 200
    step_size: int = 600
    cycles: int = 5


class SealedData(CIFAR10DataModule):
    """The data of the search: the test split cannot be had from it."""

    def labelled(self, split: Split) -> Labelled | None:
        """Return the training or validation split: λ is chosen without the test split."""
        if split == "test":
            raise PermissionError("the test split is sealed until λ has been chosen.")
        return super().labelled(split)


@dataclass(frozen=True)
class Search:
    """One search: everything that decides its outcome, and where it is kept.

    Args:
        plan: which λ.
        hidden: hidden units.
        data: arguments of CIFAR10DataModule.
        schedule: arguments of TriangularLR, of the stages.
        final: the final training.
        output: folder for search.csv, search.png, best.yaml, search.json, search.db and final/.
        storage: database of the ledger; SQLite in ``output`` by default.
    """

    plan: Plan
    hidden: int
    data: Mapping[str, Any]
    schedule: Mapping[str, Any]
    final: Final
    output: Path
    storage: str | None = None

    def settings(self) -> dict[str, Any]:
        """What the ledger is compared by: all but where the images come from."""
        groups = {
            "search": asdict(self.plan),
            "data": without_locations(self.data),
            "schedule": dict(self.schedule),
        }
        flat = {f"{group}.{k}": v for group, values in groups.items() for k, v in values.items()}
        # The rule is applied afterwards: it may be changed without training anything again.
        del flat["search.rule"], flat["search.members"]
        return {"model.hidden": self.hidden, **flat}

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
            ledger = Ledger(storage, self.output.name, {**self.settings(), "dataset": data.name})
        except InputError:
            if not there:
                with suppress(OSError):  # somebody else's files are in it
                    self.output.rmdir()
            raise
        try:
            return self._run(ledger, data)
        finally:
            ledger.close()

    def check(self) -> SealedData:
        """The data, if they, the schedule and the final training can be had with these settings.

        Raises:
            InputError: now, not after all stages, for settings that something would refuse.
        """
        data = SealedData(**self.data)
        data.check_batch_size()
        if data.size("val") == 0:
            raise InputError("a search needs a validation split: set data.val_size or val_batches.")
        TriangularLR(**self.schedule)
        try:
            CIFAR10DataModule(**self._final_data()).check_batch_size()
            TriangularLR(**self._final_schedule())
            OneLayer(self.hidden, l2=self.plan.l2_max, seeds=list(self.final.seeds))
        except InputError as error:
            raise InputError(f"of the final training, final.…: {error}") from error
        data.verify_test()
        return data

    def _run(self, ledger: Ledger, data: SealedData) -> dict[str, Any]:
        """Run the stages, then what follows from them."""
        members = self._members(ledger)
        low, high = self.plan.l2_min, self.plan.l2_max
        rows: list[dict[str, Any]] = []
        candidates: list[Candidate] = []
        for stage in range(1, self.plan.stages + 1):
            if stage > 1:
                low, high = top_range(candidates, self.plan.top)
            plan = plan_stage(self.plan, stage, low, high, members)
            self._train_stage(ledger, plan, data)
            rows += rows_of(ledger.trials(), plan)
            candidates = aggregate(rows, data.size("val"))
            with alone_in(self.output):
                atomic_write(self.output / "search.csv", format_csv(rows))
        with alone_in(self.output):
            return self._finish(ledger, rows, candidates, data.name)

    def _finish(
        self,
        ledger: Ledger,
        rows: Sequence[Mapping[str, Any]],
        candidates: Sequence[Candidate],
        dataset: str,
    ) -> dict[str, Any]:
        """Choose λ, train with it, and write what the search leaves."""
        top_range(candidates, self.plan.top)  # refuses if nothing is left to choose from
        best, one_se, chosen = (choose(candidates, r) for r in ("best", "one_se", self.plan.rule))
        plot_search(rows, candidates, chosen, best, self.output / "search.png", dataset)
        self._write_best(chosen.l2)
        gone = sorted({row["l2"] for row in rows if row["diverged"]})
        print(format_candidates(candidates, best, one_se, chosen, self.plan.rule, gone), flush=True)
        content = {
            "settings": self.settings(),
            "candidates": [asdict(c) for c in candidates],
            "best": asdict(best),
            "one_se": asdict(one_se),
            "rule": self.plan.rule,
            "l2": chosen.l2,
            "final": self._train_final(chosen.l2),
        }
        write_json(self.output / "search.json", content)
        left = f"search.csv, search.png, best.yaml, {final_name(chosen.l2)}/"
        print(f"search: {self.output} ({left})\ntrials: {ledger.title}", flush=True)
        return content

    def _members(self, ledger: Ledger) -> int:
        """Networks trained at once: kept in the ledger, because the groups are planned by it."""
        kept = ledger.keep("members", self.plan.members or members_in_memory(self.hidden))
        if self.plan.members not in (None, kept):
            raise InputError(
                f"search.members is {self.plan.members} here but {kept} in the ledger: "
                "leave it out."
            )
        return int(kept)

    def _train_stage(self, ledger: Ledger, plan: Sequence[Planned], data: SealedData) -> None:
        """Train the groups of a stage that nobody else trains, until all are finished."""
        stage, span = f"stage {plan[0].stage} of", f"[{plan[0].low:.3g}, {plan[0].high:.3g}]"
        print(f"{stage} {self.plan.stages}: {self.plan.number} l2 in {span}", flush=True)
        while ledger.unfinished(plan):
            with ledger.claim(plan) as group:
                if group is not None:
                    ledger.record(group, self.train(group, data))
            if group is None:
                time.sleep(POLL)  # others train the rest

    def train(self, group: Sequence[Planned], data: SealedData) -> list[dict[str, float]]:
        """Train a group as one population; each network's final figures."""
        l2s = list(dict.fromkeys(planned.l2 for planned in group))
        model = OneLayer(self.hidden, l2=l2s, seeds=list(self.plan.seeds))
        schedule, curves = TriangularLR(**self.schedule), Curves(per_cycle=1)
        callbacks = [schedule, curves, Divergence(stop=False)]
        trainer = make_trainer(schedule.total_steps, callbacks)
        trainer.fit(model, datamodule=data)
        figures: dict[tuple[float, int], dict[str, float]] = {}
        for split in ("train", "val"):
            for row in last_figures(curves.rows, split):
                values = {f"{split}_{name}": getattr(row, name) for name in QUANTITIES}
                figures.setdefault((row.l2, row.seed), {}).update(values)
        return [figures[planned.l2, planned.seed] for planned in group]

    def _final_data(self) -> dict[str, Any]:
        final = self.final
        return {**self.data, "val_size": final.val_size, "batch_size": final.batch_size}

    def _final_schedule(self) -> dict[str, Any]:
        return {**self.schedule, "step_size": self.final.step_size, "cycles": self.final.cycles}

    def _write_best(self, l2: float) -> None:
        """best.yaml: ``onelayer fit --config best.yaml`` trains the final networks."""
        content = {
            "model": {"hidden": self.hidden, "l2": l2, "seeds": list(self.final.seeds)},
            "data": without_locations(self._final_data()),
            "schedule": self._final_schedule(),
        }
        head = "# The final networks of a search, with the λ it chose.\n"
        atomic_write(self.output / "best.yaml", head + yaml.safe_dump(content, sort_keys=False))

    def _train_final(self, l2: float) -> dict[str, Any]:
        """Train the final networks and measure them, once, on the test split."""
        model = OneLayer(self.hidden, l2=l2, seeds=list(self.final.seeds))
        folder = self.output / final_name(l2)
        summary = train_and_test(
            model, self._final_data(), self._final_schedule(), folder, "final networks"
        )
        print(f"\nfinal networks, l2 = {l2:.4g}\n{format_summary(summary)}", flush=True)
        return summary


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the files of a folder meanwhile."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"another process writes {folder}: waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def final_name(l2: float) -> str:
    """Folder of the final networks; another rule may choose another λ later."""
    return f"final-{l2:.6g}"


def members_in_memory(hidden: int) -> int:
    """How many networks fit half of the memory that is free now, with what training them needs."""
    shapes = parameter_shapes(hidden).values()
    numbers = sum(torch.Size(shape).numel() for shape in shapes)
    per_network = 4 * (3 * numbers + 4 * CHUNK * (hidden or 10))  # weights, update, activations
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, free // 2 // per_network)


def rows_of(trials: Mapping[Any, FrozenTrial], plan: Sequence[Planned]) -> list[dict[str, Any]]:
    """The finished networks of a stage, as search.csv has them."""
    names = [f"{split}_{name}" for split in ("train", "val") for name in QUANTITIES]
    rows = []
    for planned in plan:
        figures = {name: trials[planned.key].user_attrs[name] for name in names}
        known = {k: getattr(planned, k) for k in ("stage", "index", "l2", "seed")}
        rows.append({**known, **figures, "diverged": not is_finite(figures)})
    return rows

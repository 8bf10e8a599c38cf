"""``onelayer report``: every exercise beside its published figures, as Markdown with figures."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from onelayer.core.gradcheck import check_gradients
from onelayer.data.datamodule import PLACES, CIFAR10DataModule
from onelayer.study.gradients import batch
from onelayer.study.plan import Plan, draw_l2, standard_error
from onelayer.study.plots import plot_weights
from onelayer.study.published import (
    AS_PUBLISHED,
    AS_PUBLISHED_STEPS,
    PUBLISHED_SEARCH,
    SPLITS,
    TRAININGS,
    Exercise,
)
from onelayer.study.runs import train_and_test
from onelayer.study.search import Final, Search
from onelayer.training.checkpoint import last_of, read_checkpoint
from onelayer.training.module import OneLayer
from onelayer.training.results import collect, write_json

NETWORKS = {50: "hidden 50", 0: "linear"}
STEMS = {50: "hidden", 0: "linear"}


@dataclass(frozen=True)
class Report:
    """Runs the exercises, or reuses runs of the same configuration, and writes the report.

    Args:
        output: folder of report.md and its figures.
        runs: folder of the runs.
        data: arguments of CIFAR10DataModule that say where the images are; limit makes it small.
        seeds: of every training's networks.
        search: settings of the search; its final networks take the first five of the seeds.
        schedule: arguments of TriangularLR laid over every training's, to make it short.
    """

    output: Path
    runs: Path
    data: Mapping[str, Any]
    seeds: Sequence[int] = tuple(range(10))
    search: Plan = field(default_factory=Plan)
    schedule: Mapping[str, Any] | None = None

    def write(self) -> Path:
        """Run what is missing and write report.md; its path."""
        self.output.mkdir(parents=True, exist_ok=True)
        dataset = CIFAR10DataModule(**self.data)
        dataset.verify_test()
        sections = [self._head(dataset.dataset), self._gradients(dataset.root)]
        summaries = {
            (exercise.name, hidden): self._train(exercise, hidden)
            for exercise in TRAININGS
            for hidden in NETWORKS
        }
        searches = {hidden: self._search(hidden) for hidden in NETWORKS}
        published = {hidden: self._as_published(hidden) for hidden in NETWORKS}
        sections.append(main_table(summaries, searches))
        sections += [self._curves(exercise) for exercise in TRAININGS]
        sections += [self._search_section(searches, published), self._weights()]
        path = self.output / "report.md"
        path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
        return path

    # ---- runs

    def _train(self, exercise: Exercise, hidden: int) -> dict[str, Any]:
        data = {**exercise.data, **self.data}
        schedule = {**exercise.schedule, **(self.schedule or {})}
        model: dict[str, Any] = {"hidden": hidden, "l2": exercise.l2, "seeds": list(self.seeds)}
        return self._cached(
            f"{exercise.name}-{STEMS[hidden]}",
            {"model": model, "data": data, "schedule": schedule},
            lambda folder: train_and_test(
                OneLayer(**model), data, schedule, folder, f"{exercise.title}, {NETWORKS[hidden]}"
            ),
        )

    def _cached(
        self, name: str, settings: dict[str, Any], run: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any]:
        """The result of a finished run of the same settings, else of a new one.

        A run that was cut short goes on; one of other settings is replaced.
        """
        folder = self.runs / name
        settings = json.loads(json.dumps(_without_places(settings)))
        kept = _read_json(folder / "settings.json")
        if kept != settings:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / "settings.json", settings)
        result: dict[str, Any] | None = _read_json(folder / "result.json")
        if result is None:
            result = run(folder)
            write_json(folder / "result.json", result)
        return result

    def _search(self, hidden: int) -> dict[str, Any]:
        schedule = {"step_size": 900, "cycles": 2, **(self.schedule or {})}
        final: dict[str, Any] = {"seeds": list(self.seeds[:5])}
        if self.schedule:
            final |= {k: v for k, v in self.schedule.items() if k in ("step_size", "cycles")}
        search = Search(
            self.search, hidden, _arguments(self.data), _rates(schedule), Final(**final),
            self.runs / f"search-{STEMS[hidden]}",
        )  # fmt: skip
        found = search.run()
        shutil.copy(search.output / "search.png", self.output / f"search-{STEMS[hidden]}.png")
        return found

    def _as_published(self, hidden: int) -> dict[str, Any]:
        """The coarse stage as the report ran it: one population, stopped in mid-cycle."""
        l2s = [
            draw_l2(self.search, 1, i, self.search.l2_min, self.search.l2_max)
            for i in range(self.search.number)
        ]
        model: dict[str, Any] = {"hidden": hidden, "l2": l2s, "seeds": [0]}
        schedule: dict[str, Any] = {**AS_PUBLISHED, **(self.schedule or {})}
        steps = AS_PUBLISHED_STEPS
        if self.schedule:
            steps = int(4.5 * schedule["step_size"])
        return self._cached(
            f"as-published-{STEMS[hidden]}",
            {"model": model, "data": dict(self.data), "schedule": schedule, "steps": steps},
            lambda folder: train_and_test(
                OneLayer(**model), self.data, schedule, folder, "as published", steps
            ),
        )

    # ---- sections

    def _head(self, dataset: str) -> str:
        warning = (
            "\n\n**These figures are of the built-in synthetic images, not of CIFAR-10.**"
            if dataset == "synthetic"
            else ""
        )
        return (
            "# The report's exercises, repeated\n\n"
            "Made by `onelayer report`, which runs what is missing and writes this page: every "
            f"training with {len(self.seeds)} seeds at once, as one population. Accuracies in %, "
            "mean ± standard deviation over seeds. *Published* is T. Perrot's report (KTH DD2424, "
            "April 2024), from one seed; *handout* the course's." + warning
        )

    def _gradients(self, root: Path) -> str:
        X, y, dataset = batch(root)
        rows = [
            "| network | members | parameter | against | relative error | bound |",
            "|---|---|---|---|---|---|",
        ]
        for c in check_gradients(X, y):
            error, bound = f"{c.error:.1e}", f"{c.bound:.0e}"
            if c.judge == "torch gradcheck":
                error, bound = ("passed" if c.passed else "FAILED"), "passes"
            verdict = "" if c.passed else " **missed**"
            rows.append(
                f"| {c.network} | {c.members} | {c.parameter} | {c.judge} "
                f"| {error}{verdict} | {bound} |"
            )
        return (
            "## 1 Gradients\n\n"
            f"{len(X)} {dataset} images, {X.shape[1]} inputs, float64, h = 1e-5; largest relative "
            "error over all entries. The report: 1e-14 against autograd, 1e-4 against one-sided "
            "differences. Made by `onelayer gradcheck`.\n\n" + "\n".join(rows)
        )

    def _curves(self, exercise: Exercise) -> str:
        lines = [f"## {exercise.title}"]
        seeds = str(list(self.seeds)).replace(" ", "")
        for hidden, network in NETWORKS.items():
            name = f"{exercise.name}-{STEMS[hidden]}"
            shutil.copy(self.runs / name / "curves.png", self.output / f"{name}.png")
            overlay = " -c configs/linear.yaml" if hidden == 0 else ""
            command = f"onelayer fit -c configs/{exercise.name}.yaml{overlay} --model.seeds {seeds}"
            lines += [
                f"![{exercise.title}, {network}]({name}.png)",
                f"*{network}: mean and standard deviation over seeds. Made by* `{command}`",
            ]
        return "\n\n".join(lines)

    def _search_section(
        self, searches: Mapping[int, dict[str, Any]], published: Mapping[int, dict[str, Any]]
    ) -> str:
        lines, images = ["## 4.1 Search for λ"], CIFAR10DataModule(**self.data).size("val")
        for hidden, found in searches.items():
            overlay = " -c configs/linear.yaml" if hidden == 0 else ""
            name = STEMS[hidden]
            lines += [
                f"![search, {NETWORKS[hidden]}](search-{name}.png)",
                f"*{NETWORKS[hidden]}. Made by* `onelayer search -c configs/search.yaml{overlay}`",
                search_table(hidden, found, published[hidden], images),
            ]
        lines.append(
            "*As published*: the report's code ran n_s = 200 instead of 900, so that each of its "
            f"trainings of {AS_PUBLISHED_STEPS} updates was 2.25 cycles and stopped in mid-cycle, "
            "at η ≈ 0.05. onelayer runs it when told to, and warns: *training stops in mid-cycle: "
            "900 updates are 2.25 cycles of 400*. That is why its search accuracies lie below ours."
        )
        return "\n\n".join(lines)

    def _weights(self) -> str:
        lines = ["## Learnt weights as images"]
        for hidden, network in NETWORKS.items():
            name = f"three_cycles-{STEMS[hidden]}"
            state = read_checkpoint(last_of(self.runs / name))["state_dict"]
            W: torch.Tensor = state["W1" if hidden else "W"][0]
            target = self.output / f"weights-{STEMS[hidden]}.png"
            titles = None if hidden else CIFAR10DataModule(**self.data).class_names
            plot_weights(W, target, titles)
            what = "its hidden units" if hidden else "the ten classes"
            lines += [
                f"![weights, {network}]({target.name})",
                f"*{network}, after three cycles, seed {self.seeds[0]}: the weights of {what}, "
                "each scaled to its own range. Made by* `onelayer report`",
            ]
        return "\n\n".join(lines)


def main_table(
    summaries: Mapping[tuple[str, int], dict[str, Any]], searches: Mapping[int, dict[str, Any]]
) -> str:
    """Every training, network and split: published, handout, ours, and whether they agree."""
    lines = [
        "## Results\n",
        "| exercise | network | split | published | handout | ours "
        "| published within ours ± 2 std |",
        "|---|---|---|---|---|---|---|",
    ]
    for exercise in TRAININGS:
        for hidden, network in NETWORKS.items():
            members = summaries[exercise.name, hidden]["members"]
            for split in SPLITS:
                published = exercise.published.get(split) if hidden else None
                handout = exercise.handout.get(split) if hidden else None
                lines.append(_row(exercise.title, network, split, published, handout, members))
    for hidden, network in NETWORKS.items():
        title = f"4.2 final, the λ = {searches[hidden]['l2']:.2g} that our search chose"
        final = TRAININGS[-1]
        for split in SPLITS:
            published = final.published.get(split) if hidden else None
            handout = final.handout.get(split) if hidden else None
            members = searches[hidden]["final"]["members"]
            lines.append(_row(title, network, split, published, handout, members))
    return "\n".join(lines)


def _row(
    title: str,
    network: str,
    split: str,
    published: float | None,
    handout: float | None,
    members: Sequence[dict[str, Any]],
) -> str:
    ours = [100 * value for value in collect(members, split, "accuracy")]
    gone = len(members) - len(ours)
    mean = statistics.fmean(ours) if ours else math.nan
    std = statistics.stdev(ours) if len(ours) > 1 else 0.0
    within = "" if published is None else ("yes" if abs(published - mean) <= 2 * std else "no")
    figures = (f"{mean:.2f} ± {std:.2f}" if ours else "") + (f" ({gone} diverged)" if gone else "")
    cells = ["" if value is None else f"{value:g}" for value in (published, handout)]
    return f"| {title} | {network} | {split} | {cells[0]} | {cells[1]} | {figures} | {within} |"


def search_table(
    hidden: int, found: Mapping[str, Any], as_published: Mapping[str, Any], images: int
) -> str:
    """The best λ of each stage, ours as specified and as published, beside the report's."""
    rows = [
        "| stage | report: best val at λ | as specified: best val ± SE at λ "
        "| as published: best val ± SE at λ |",
        "|---|---|---|---|",
    ]
    sound = [m for m in as_published["members"] if not m.get("diverged")]
    coarse = max(sound, key=lambda m: float(m["val"]["accuracy"]))
    error = 100 * standard_error([coarse["val"]["accuracy"]], images)
    variant = f"{100 * coarse['val']['accuracy']:.2f} ± {error:.2f} at {coarse['l2']:.2e}"
    for stage in sorted({c["stage"] for c in found["candidates"]}):
        best = max((c for c in found["candidates"] if c["stage"] == stage), key=lambda c: c["mean"])
        theirs = PUBLISHED_SEARCH.get(stage) if hidden else None
        cell = f"{theirs[0]} at {theirs[1]:.1e}" if theirs else ""
        ours = f"{100 * best['mean']:.2f} ± {100 * best['error']:.2f} at {best['l2']:.2e}"
        rows.append(f"| {stage} | {cell} | {ours} | {variant if stage == 1 else ''} |")
    best, one_se = found["best"], found["one_se"]
    value = f"{100 * best['mean']:.2f} ± {100 * best['error']:.2f}"
    rows.append(
        f"\nBest mean: λ = {best['l2']:.3g} ({value}). Largest λ within one standard error: "
        f"{one_se['l2']:.3g} ({100 * one_se['mean']:.2f}). Chosen by the rule `{found['rule']}`, "
        f"on validation alone: **{found['l2']:.3g}**. The test split was measured once, afterwards."
    )
    return "\n".join(rows)


def _rates(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """A search's schedule with every argument, as the command line gives it."""
    from onelayer.training.schedule import TriangularLR

    return TriangularLR(**schedule).state_dict()


def _arguments(data: Mapping[str, Any]) -> dict[str, Any]:
    """A search's data with every argument, as the command line gives it."""
    return dict(CIFAR10DataModule(**data).hparams)


def _without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings less where the images lie, which changes no result."""
    data = {k: v for k, v in settings["data"].items() if k not in PLACES}
    return {**settings, "data": data}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

"""``onelayer report``: every exercise beside its published figures, as Markdown with figures."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from onelayer.configs import read_configs
from onelayer.core.errors import InputError
from onelayer.core.gradcheck import check_gradients
from onelayer.data.datamodule import PLACES, CIFAR10DataModule
from onelayer.study.gradients import batch
from onelayer.study.plan import Plan, draw_l2
from onelayer.study.plots import plot_weights
from onelayer.study.published import EXERCISES, SEARCH
from onelayer.study.runs import train_and_test
from onelayer.study.search import Final, Search, alone_in
from onelayer.study.tables import Result, gradients_table, main_table, search_table
from onelayer.training.checkpoint import last_of, read_checkpoint
from onelayer.training.files import atomic_write
from onelayer.training.module import OneLayer
from onelayer.training.results import write_json
from onelayer.training.schedule import TriangularLR

NETWORKS = {"hidden": "hidden 50", "linear": "linear"}
"""The names of both networks by the ends of their files' names."""


@dataclass(frozen=True)
class Command:
    """A command that makes one result of the report.

    Attributes:
        subcommand: fit or search.
        configs: names of shipped configs, each laid over those before.
        options: laid over them, by their names on the command line; those alone that change a
            figure.
    """

    subcommand: str
    configs: Sequence[str]
    options: Mapping[str, Any]

    def __str__(self) -> str:
        """As it is typed in a checkout, quoted for any shell."""
        configs = [word for name in self.configs for word in ("-c", f"configs/{name}.yaml")]
        return shlex.join(["onelayer", self.subcommand, *configs, *_words(self.options)])

    @cached_property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The configs with the options over them, by section; data and schedule are complete."""
        settings = {"data": {}, "schedule": {}, **read_configs(*self.configs)}
        for option, value in self.options.items():
            section, key = option.split(".")
            settings.setdefault(section, {})[key] = value
        data = CIFAR10DataModule(**settings["data"]).hparams
        settings["data"] = {k: v for k, v in data.items() if k not in PLACES}
        settings["schedule"] = TriangularLR(**settings["schedule"]).state_dict()
        return settings


@dataclass(frozen=True)
class Report:
    """Runs the exercises, or reuses runs of the same settings, and writes the report.

    The settings are those of configs/; a run has its settings' hash in its folder's name, so that
    reports with different ones leave each other's alone.

    Args:
        output: folder of report.md and its figures.
        runs: folder of the runs.
        data: arguments of CIFAR10DataModule, laid over every exercise's: where the images are,
            which they are, and limit, which makes all of it small.
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
        """Run what is missing and write report.md; its path.

        Raises:
            InputError: before anything is trained, if an exercise cannot be trained with these
                settings, or the output folder has the report of others.
        """
        self._check()
        trainings = {
            (name, network): self._train(name, network)
            for name in EXERCISES
            for network in NETWORKS
        }
        searches = {network: self._search(network).run() for network in NETWORKS}
        coarse = {network: self._train("as_published", network) for network in NETWORKS}
        self.output.mkdir(parents=True, exist_ok=True)
        with alone_in(self.runs):
            sections = [
                self._head(),
                self._gradients(),
                f"## Results\n\n{main_table(self._results(trainings, searches))}",
                *[self._curves(name) for name in EXERCISES],
                self._search_section(searches, coarse),
                self._weights(),
            ]
            atomic_write(self.output / "report.md", "\n\n".join(sections) + "\n")
        return self.output / "report.md"

    # ---- what is asked for

    @cached_property
    def _dataset(self) -> CIFAR10DataModule:
        return CIFAR10DataModule(**self.data)

    @cached_property
    def _changes(self) -> dict[str, Any]:
        """What was changed in all exercises, less the seeds, by options of ``onelayer report``."""
        shipped = asdict(Plan(**read_configs("search")["search"]))
        data = {f"data.{k}": v for k, v in self.data.items() if k not in PLACES and v != "cifar10"}
        search = {
            f"search.{k}": v
            for k, v in asdict(self.search).items()
            if v != shipped[k] and k != "members"  # how many are trained at once changes no figure
        }
        return {**data, **(self.schedule or {}), **search}

    @property
    def _kind(self) -> str:
        """What the report says of itself where it has other settings than the exercises."""
        if not self._changes.keys() - {"data.source"}:
            return ""
        short = self.schedule or "data.limit" in self._changes
        return "a quick look" if short else "with other settings"

    def _published(self, network: str) -> bool:
        """Whether there are published figures of the same network, settings and images."""
        return network == "hidden" and not self._kind and self._dataset.dataset == "cifar10"

    @property
    def _command(self) -> str:
        seeds = {} if list(self.seeds) == list(range(10)) else {"seeds": list(self.seeds)}
        return shlex.join(["onelayer", "report", *_words({**seeds, **self._changes})])

    def _fit(self, name: str, network: str) -> Command:
        """The training of an exercise, or of the search's coarse stage as the report ran it."""
        configs = _configs(name, network)
        shipped = read_configs(*configs)
        options: dict[str, Any] = {"model.seeds": list(self.seeds)}
        if name == "as_published":
            options = {"model.l2": self._coarse_l2s(), "model.seeds": [0]}
        options |= {k: v for k, v in self._changes.items() if k.startswith("data.")}
        own = shipped.get("data", {}).get("limit")
        if own is not None and options.get("data.limit", own) >= own:
            options.pop("data.limit", None)  # a quick look makes nothing longer
        options |= {f"schedule.{k}": v for k, v in (self.schedule or {}).items()}
        if "trainer" in shipped and "schedule.step_size" in options:
            cycles = shipped["trainer"]["max_steps"] / shipped["schedule"]["step_size"]
            options["trainer.max_steps"] = int(cycles * options["schedule.step_size"])
        return Command("fit", configs, options)

    def _coarse_l2s(self) -> list[float]:
        low, high = self.search.l2_min, self.search.l2_max
        return [draw_l2(self.search, 1, i, low, high) for i in range(self.search.number)]

    def _find(self, network: str) -> Command:
        """The search of one network."""
        options = {k: v for k, v in self._changes.items() if "." in k}
        for key, value in (self.schedule or {}).items():
            options[f"schedule.{key}"] = value
            if key in ("step_size", "cycles"):
                options[f"final.{key}"] = value
        seeds = list(self.seeds[:5])
        if seeds != read_configs("search")["final"]["seeds"]:
            options["final.seeds"] = seeds
        return Command("search", _configs("search", network), options)

    def _search(self, network: str) -> Search:
        command = self._find(network)
        settings = command.settings
        return Search(
            plan=self.search,
            hidden=settings["model"]["hidden"],
            data={**settings["data"], **self._sources()},
            schedule=settings["schedule"],
            final=Final(**settings["final"]),
            output=self._folder("search", network, command),
        )

    def _sources(self) -> dict[str, Any]:
        """Where the images lie, which changes no figure."""
        return {k: v for k, v in self.data.items() if k in PLACES}

    def _folder(self, name: str, network: str, command: Command) -> Path:
        """Of a run: other settings, or images, make another name."""
        settings = {**command.settings, "dataset": self._dataset.dataset}
        if command.subcommand == "search":  # the rule and the members are applied afterwards
            settings["search"] = {**asdict(self.search), "rule": None, "members": None}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self.runs / f"{name}-{network}-{digest[:8]}"

    def _check(self) -> None:
        """Refuse now, not after hours, what would be refused then."""
        path, made = self.output / "report.md", f"Made by `{self._command}`"
        if path.is_file() and made not in path.read_text("utf-8", "replace"):
            raise InputError(
                f"{path} was not made by {self._command}, which would replace it:\n"
                "name another folder with --output, or move it away."
            )
        for network in NETWORKS:
            for name in (*EXERCISES, "as_published"):
                _check_training(self._fit(name, network))
        self._dataset.verify_test()
        for network in NETWORKS:
            self._search(network).check()

    # ---- runs

    def _train(self, name: str, network: str) -> dict[str, Any]:
        """The result of a finished run of the same settings, else of a new one.

        A run that was cut short goes on.
        """
        command = self._fit(name, network)
        settings, folder = command.settings, self._folder(name, network, command)
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):
            path = folder / "result.json"
            if not path.is_file():
                write_json(folder / "settings.json", settings)  # for people: what the hash is of
                title = EXERCISES[name].title if name in EXERCISES else "as published"
                result = train_and_test(
                    OneLayer(**settings["model"]),
                    {**settings["data"], **self._sources()},
                    settings["schedule"],
                    folder,
                    ", ".join(filter(None, [title, NETWORKS[network], self._kind])),
                    settings.get("trainer", {}).get("max_steps"),
                )
                write_json(path, result)
            return dict(json.loads(path.read_text("utf-8")))

    def _results(
        self,
        trainings: Mapping[tuple[str, str], dict[str, Any]],
        searches: Mapping[str, dict[str, Any]],
    ) -> list[Result]:
        results = []
        for (name, network), result in trainings.items():
            published = EXERCISES[name] if self._published(network) else None
            title = EXERCISES[name].title
            results.append(Result(title, NETWORKS[network], result["members"], published))
        for network, found in searches.items():
            title = f"4.2 final, the λ = {found['l2']:.2g} that our search chose"
            same = found["l2"] == read_configs("final")["model"]["l2"]
            published = EXERCISES["final"] if same and self._published(network) else None
            members = found["final"]["members"]
            results.append(Result(title, NETWORKS[network], members, published))
        return results

    # ---- sections

    def _head(self) -> str:
        title = f", {self._kind}" if self._kind else ""
        text = (
            f"# The report's exercises, repeated{title}\n\n"
            f"Made by `{self._command}`, which runs what is missing and writes this page: every "
            f"training with {len(self.seeds)} seeds at once, as one population. Accuracies in %, "
            "mean ± standard deviation over seeds. *Published* is T. Perrot's report (KTH DD2424, "
            "April 2024), from one seed; *handout* the course's."
        )
        if self._kind:
            text += "\n\n**The settings are not the exercises', so nothing published is compared.**"
        if self._dataset.dataset == "synthetic":
            text += "\n\n**These figures are of the built-in synthetic images, not of CIFAR-10.**"
        return text

    def _gradients(self) -> str:
        X, y, dataset = batch(self._dataset.root)
        return (
            "## 1 Gradients\n\n"
            f"{len(X)} {dataset} images, {X.shape[1]} inputs, float64, h = 1e-5; largest relative "
            "error over all entries. The report: 1e-14 against autograd, 1e-4 against one-sided "
            "differences. Made by `onelayer gradcheck`.\n\n"
            + gradients_table(check_gradients(X, y))
        )

    def _picture(self, title: str, file: str, caption: str, command: object) -> str:
        """A figure with what it shows and the command that makes it."""
        kind = f"{self._kind.capitalize()}. " if self._kind else ""
        return f"![{title}]({file})\n\n*{caption}. {kind}Made by* `{command}`"

    def _curves(self, name: str) -> str:
        title = EXERCISES[name].title
        sections = [f"## {title}"]
        for network, said in NETWORKS.items():
            command, file = self._fit(name, network), f"{name}-{network}.png"
            folder = self._folder(name, network, command)
            shutil.copy(folder / "curves.png", self.output / file)
            caption = f"{said}: mean and standard deviation over seeds"
            sections.append(self._picture(f"{title}, {said}", file, caption, command))
        return "\n\n".join(sections)

    def _search_section(
        self, searches: Mapping[str, dict[str, Any]], coarse: Mapping[str, dict[str, Any]]
    ) -> str:
        sections = ["## 4.1 Search for λ"]
        for network, said in NETWORKS.items():
            search, file = self._search(network), f"search-{network}.png"
            shutil.copy(search.output / "search.png", self.output / file)
            images = CIFAR10DataModule(**search.data).size("val")
            published = SEARCH if self._published(network) else {}
            sections += [
                self._picture(f"search, {said}", file, said, self._find(network)),
                search_table(searches[network], coarse[network]["members"], images, published),
            ]
        return "\n\n".join([*sections, self._as_published()])

    def _as_published(self) -> str:
        """What the column of that name is."""
        ours, theirs = self._find("hidden").settings, self._fit("as_published", "hidden").settings
        steps, rates = theirs["trainer"]["max_steps"], TriangularLR(**theirs["schedule"])
        return (
            f"*As published*: the report's code ran n_s = {rates.step_size} instead of "
            f"{ours['schedule']['step_size']}, so that each of its trainings of {steps} updates "
            f"was {steps / rates.cycle:g} cycles and stopped in mid-cycle, at η ≈ "
            f"{rates.rate(steps):.2g}. onelayer runs it (configs/as_published.yaml), and warns: "
            f"*training stops in mid-cycle: {steps} updates are {steps / rates.cycle:g} cycles of "
            f"{rates.cycle}*. That is why its search accuracies lie below ours."
        )

    def _weights(self) -> str:
        sections = ["## Learnt weights as images"]
        for network, said in NETWORKS.items():
            folder = self._folder("three_cycles", network, self._fit("three_cycles", network))
            state, file = read_checkpoint(last_of(folder))["state_dict"], f"weights-{network}.png"
            W = state["W1" if network == "hidden" else "W"][0]
            titles = None if network == "hidden" else self._dataset.class_names
            plot_weights(W, self.output / file, titles)
            what = "its hidden units" if network == "hidden" else "the ten classes"
            caption = (
                f"{said}, after three cycles, seed {self.seeds[0]}: the weights of {what}, each "
                "scaled to its own range"
            )
            sections.append(self._picture(f"weights, {said}", file, caption, self._command))
        return "\n\n".join(sections)


def _configs(name: str, network: str) -> tuple[str, ...]:
    """The configs of an exercise's network."""
    return (name, "linear") if network == "linear" else (name,)


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    return [
        word
        for key, v in options.items()
        for word in (f"--{key}", v if isinstance(v, str) else json.dumps(v, separators=(",", ":")))
    ]


def _check_training(command: Command) -> None:
    """Raise :class:`InputError` for settings that training would refuse."""
    name = f"configs/{command.configs[0]}.yaml"
    try:
        settings = command.settings
        OneLayer(**settings["model"])
        CIFAR10DataModule(**settings["data"]).check_batch_size()
    except InputError as error:
        limit = command.options.get("data.limit")
        remedy = "" if limit is None else f"\ndata.limit is {limit}: raise it, or leave it out."
        raise InputError(f"{name} cannot be trained so: {error}{remedy}") from error

"""The exercises as commands: their settings, and their runs, trained or reused."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from onelayer.configs import read_configs
from onelayer.core.errors import InputError
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.study.data_settings import without_locations
from onelayer.study.plan import Final, Plan, Repeat, draw_l2
from onelayer.study.published import EXERCISES
from onelayer.study.run import alone_in, check_training, train_and_test
from onelayer.study.search import Search
from onelayer.study.widths import OPTIONS, WidthRow, width_row
from onelayer.training.files import write_json
from onelayer.training.schedule import TriangularLR

NETWORKS = {"hidden": "hidden 50", "linear": "linear"}
"""Names of both networks by the ends of their files' names."""


@dataclass(frozen=True)
class Command:
    """A command that makes one result of the report.

    Attributes:
        subcommand: fit or search.
        name: name of a shipped config.
        network: hidden, or linear, whose config is laid over the first.
        options: laid over both, by their names on the command line; those alone that change a
            figure.
    """

    subcommand: str
    name: str
    network: str
    options: Mapping[str, Any]

    @property
    def configs(self) -> list[str]:
        """The names of its configs."""
        return [self.name, *(["linear"] if self.network == "linear" else [])]

    def __str__(self) -> str:
        """Return the command line, quoted for any shell."""
        configs = [f"-c {name}" for name in self.configs]
        return " ".join(["onelayer", self.subcommand, *configs, *_words(self.options)])

    @cached_property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The configs with the options, by section; data and schedule are complete."""
        settings = {"data": {}, "schedule": {}, **read_configs(*self.configs)}
        for option, value in self.options.items():
            section, key = option.split(".")
            settings.setdefault(section, {})[key] = value
        settings["data"] = without_locations(CIFAR10DataModule(**settings["data"]).hparams)
        settings["schedule"] = TriangularLR(**settings["schedule"]).state_dict()
        return settings

    def check(self) -> None:
        """Raise :class:`InputError` for settings that training would refuse."""
        try:
            check_training(self.settings)
        except InputError as error:
            limit = self.options.get("data.limit")
            remedy = "" if limit is None else f"\ndata.limit is {limit}: raise it, or leave it out."
            raise InputError(
                f"configs/{self.name}.yaml cannot be trained so: {error}{remedy}"
            ) from error


Done = tuple[Command, dict[str, Any]]
"""A command and its result."""


@dataclass(frozen=True)
class Exercises:
    """Runs of the exercises, or reused runs of the same settings.

    The settings are those of configs/; a run has its settings' hash in its folder's name, so that
    reports with different ones leave each other's alone.

    Args:
        output: folder of report.md and its figures.
        data: arguments of CIFAR10DataModule that replace every exercise's: root, source, and
            limit, which makes all of it small.
        repeat: seeds and widths.
        search: settings of the search; its final networks take the first five of the seeds.
        schedule: arguments of TriangularLR that replace every run's: step_size, for a quick report.
        trainer: flags of every run's Trainer that choose the device: accelerator and devices.
    """

    output: Path
    data: Mapping[str, Any]
    repeat: Repeat = field(default_factory=Repeat)
    search: Plan = field(default_factory=Plan)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)

    # ---- what is asked for

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return Path(self.repeat.runs)

    @cached_property
    def _data(self) -> CIFAR10DataModule:
        return CIFAR10DataModule(**self.data)

    @cached_property
    def _changes(self) -> dict[str, Any]:
        """Options of ``onelayer report`` that change all exercises, except the seeds."""
        shipped = asdict(Plan(**read_configs("search")["search"]))
        data = {f"data.{k}": v for k, v in without_locations(self.data).items() if v != "cifar10"}
        search = {
            f"search.{k}": v
            for k, v in asdict(self.search).items()
            if v != shipped[k] and k != "members"  # how many are trained at once changes no figure
        }
        return {**data, **{f"schedule.{k}": v for k, v in self.schedule.items()}, **search}

    @property
    def _kind(self) -> str:
        """Kind of the report, if it has other settings than the exercises."""
        if not self._changes.keys() - {"data.source"}:
            return ""
        short = self.schedule or "data.limit" in self._changes
        return "a quick version" if short else "with other settings"

    def _published(self, network: str) -> bool:
        """Return whether results were published for the same network, settings and images."""
        return network == "hidden" and not self._kind and self._data.name == "cifar10"

    @property
    def _command(self) -> str:
        seeds, widths = self.repeat.seeds, self.repeat.widths
        options = {} if seeds == Repeat().seeds else {"report.seeds": seeds}
        options |= {**self._changes, **({"report.widths": widths} if widths else {})}
        return " ".join(["onelayer report", *_words(options)])

    def _fits(self, name: str) -> list[Command]:
        """Return the runs of both networks in an exercise, or in the published coarse search."""
        shipped, schedule = read_configs(name), self.schedule
        options: dict[str, Any] = {"model.seeds": list(self.repeat.seeds)}
        if name == "as_published":
            low, high = self.search.l2_min, self.search.l2_max
            l2s = [draw_l2(self.search, 1, i, low, high) for i in range(self.search.number)]
            options = {"model.l2": l2s, "model.seeds": [0]}
        options |= {k: v for k, v in self._changes.items() if k.startswith("data.")}
        own = shipped.get("data", {}).get("limit")
        if own is not None and options.get("data.limit", own) >= own:
            options.pop("data.limit", None)  # a quick version makes nothing longer
        options |= {f"schedule.{k}": v for k, v in schedule.items()}
        if "trainer" in shipped and "step_size" in schedule:
            steps, n_s = shipped["trainer"]["max_steps"], shipped["schedule"]["step_size"]
            options["trainer.max_steps"] = steps * schedule["step_size"] // n_s
        return [Command("fit", name, network, options) for network in NETWORKS]

    def _finds(self) -> list[Command]:
        """Return both networks' searches."""
        options = dict(self._changes)
        options |= {f"final.{key}": value for key, value in self.schedule.items()}
        if (seeds := list(self.repeat.seeds[:5])) != read_configs("search")["final"]["seeds"]:
            options["final.seeds"] = seeds
        return [Command("search", "search", network, options) for network in NETWORKS]

    def _widths(self) -> Iterator[tuple[int, bool, Command]]:
        """Yield hidden units, whether images are augmented, and the search of each row."""
        given = {k: v for k, v in self._finds()[0].options.items() if not k.startswith("search.")}
        for augmented in (False, True):
            for hidden in self.repeat.widths:
                options = {"model.hidden": hidden, **OPTIONS[augmented], **given}
                name = f"{hidden}-augmented" if augmented else str(hidden)
                yield hidden, augmented, Command("search", "widths", name, options)

    def _width(self, hidden: int, augmented: bool, find: Command) -> WidthRow:
        return width_row(hidden, augmented, self._search(find).run())

    # ---- runs

    def _folder(self, command: Command) -> Path:
        """Return the folder of a run; other settings or images have another one."""
        settings = {**command.settings, "dataset": self._data.name}
        if command.subcommand == "search":  # the rule and the members are applied afterwards
            settings["search"] = {**self._plan(command).as_dict(), "rule": None, "members": None}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self.runs / f"{command.name}-{command.network}-{digest[:8]}"

    def _settings(self, command: Command) -> dict[str, dict[str, Any]]:
        """Return a command's settings with the location of the data and the device."""
        locations = {k: v for k, v in self.data.items() if k in CIFAR10DataModule.locations}
        settings = {**command.settings, "data": {**command.settings["data"], **locations}}
        return {**settings, "trainer": {**settings.get("trainer", {}), **self.trainer}}

    def _plan(self, find: Command) -> Plan:
        """Return the plan of a search; the report's own search has the options of its command."""
        return self.search if find.name == "search" else Plan(**find.settings["search"])

    def _search(self, find: Command) -> Search:
        settings = self._settings(find)
        return Search(
            plan=self._plan(find),
            model=settings["model"],
            data=settings["data"],
            schedule=settings["schedule"],
            final=Final(**settings["final"]),
            output=self._folder(find),
            trainer=settings["trainer"],
            curves=settings.get("curves", {}),
            test=settings.get("test", {}),
        )

    def _train(self, fit: Command) -> dict[str, Any]:
        """Return the result of a run, after training what is missing of it."""
        folder = self._folder(fit)
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):
            path = folder / "result.json"
            if not path.is_file():
                write_json(folder / "settings.json", fit.settings)  # for people: what is hashed
                title = EXERCISES[fit.name].title if fit.name in EXERCISES else "as published"
                words = [title, NETWORKS[fit.network], self._kind]
                title = ", ".join(filter(None, words))
                write_json(path, train_and_test(self._settings(fit), folder, title).summary)
            return dict(json.loads(path.read_text("utf-8")))


def _words(options: Mapping[str, Any]) -> list[str]:
    """Return options as on a command line, quoted for any shell."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in options.items()}
    return [f"--{k} {shlex.quote(text.replace(' ', ''))}" for k, text in texts.items()]

"""``onelayer report``: every exercise beside its published figures, as Markdown with figures."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from onelayer.configs import read_configs
from onelayer.core.checks import check_whole
from onelayer.core.errors import InputError
from onelayer.core.gradcheck import check_gradients
from onelayer.data.datamodule import LOCATION_ARGUMENTS, CIFAR10DataModule
from onelayer.study.comparison_figures import plot_widths
from onelayer.study.data import without_locations
from onelayer.study.figures import plot_weights
from onelayer.study.formatting import (
    Result,
    format_csv,
    gradients_table,
    main_table,
    search_table,
)
from onelayer.study.gradients import batch
from onelayer.study.plan import Final, Plan, Repeat, draw_l2
from onelayer.study.published import EXERCISES, SEARCH
from onelayer.study.run import alone_in, check_training, train_and_test
from onelayer.study.search import Search
from onelayer.study.widths import (
    KINDS,
    OPTIONS,
    WidthRow,
    best_width,
    width_row,
    widths_table,
)
from onelayer.training.checkpoint import read_checkpoint
from onelayer.training.files import atomic_write, write_json
from onelayer.training.folder import last_of
from onelayer.training.schedule import TriangularLR

NETWORKS = {"hidden": "hidden 50", "linear": "linear"}
"""The names of both networks by the ends of their files' names."""


@dataclass(frozen=True)
class Command:
    """A command that makes one result of the report.

    Attributes:
        subcommand: fit or search.
        name: of a shipped config.
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
        """As it is typed in a checkout, quoted for any shell."""
        configs = [f"-c {name}" for name in self.configs]
        return " ".join(["onelayer", self.subcommand, *configs, *_words(self.options)])

    @cached_property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The configs with the options over them, by section; data and schedule are complete."""
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
"""A command and what it found."""


@dataclass(frozen=True)
class Report:
    """Runs the exercises, or reuses runs of the same settings, and writes the report.

    The settings are those of configs/; a run has its settings' hash in its folder's name, so that
    reports with different ones leave each other's alone.

    Args:
        output: folder of report.md and its figures.
        data: arguments of CIFAR10DataModule that replace every exercise's: root, source, and
            limit, which makes all of it small.
        repeat: seeds, lengths and widths.
        search: settings of the search; its final networks take the first five of the seeds.
    """

    output: Path
    data: Mapping[str, Any]
    repeat: Repeat = field(default_factory=Repeat)
    search: Plan = field(default_factory=Plan)

    def write(self) -> Path:
        """Run what is missing and write report.md; its path.

        Raises:
            InputError: before anything is trained, if an exercise cannot be trained with these
                settings, or the output folder has the report of others.
        """
        self._check()
        trainings = [(fit, self._train(fit)) for name in EXERCISES for fit in self._fits(name)]
        searches = [(find, self._search(find).run()) for find in self._finds()]
        coarse = [self._train(fit)["members"] for fit in self._fits("as_published")]
        widths = [self._width(*one) for one in self._widths()]
        self.output.mkdir(parents=True, exist_ok=True)
        with alone_in(self.runs):
            sections = [
                self._head(),
                self._gradients(),
                f"## Results\n\n{main_table(self._results(trainings, searches))}",
                *[self._curves(name) for name in EXERCISES],
                self._search_section(searches, coarse),
                self._weights(),
                *([self._widths_section(widths)] if widths else []),
            ]
            atomic_write(self.output / "report.md", "\n\n".join(sections) + "\n")
        return self.output / "report.md"

    # ---- what is asked for

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return Path(self.repeat.runs)

    @property
    def schedule(self) -> dict[str, Any]:
        """Arguments of TriangularLR that replace every run's."""
        step_size = self.repeat.step_size
        return {} if step_size is None else {"step_size": step_size}

    @cached_property
    def _data(self) -> CIFAR10DataModule:
        return CIFAR10DataModule(**self.data)

    @cached_property
    def _changes(self) -> dict[str, Any]:
        """What was changed in all exercises, less the seeds, by options of ``onelayer report``."""
        shipped = asdict(Plan(**read_configs("search")["search"]))
        data = {f"data.{k}": v for k, v in without_locations(self.data).items() if v != "cifar10"}
        search = {
            f"search.{k}": v
            for k, v in asdict(self.search).items()
            if v != shipped[k] and k != "members"  # how many are trained at once changes no figure
        }
        return {**data, **{f"report.{k}": v for k, v in self.schedule.items()}, **search}

    @property
    def _kind(self) -> str:
        """What the report says of itself where it has other settings than the exercises."""
        if not self._changes.keys() - {"data.source"}:
            return ""
        short = self.schedule or "data.limit" in self._changes
        return "a quick version" if short else "with other settings"

    def _published(self, network: str) -> bool:
        """Whether there are published figures of the same network, settings and images."""
        return network == "hidden" and not self._kind and self._data.name == "cifar10"

    @property
    def _command(self) -> str:
        seeds, widths = self.repeat.seeds, self.repeat.widths
        options = {} if seeds == Repeat().seeds else {"report.seeds": seeds}
        options |= {**self._changes, **({"report.widths": widths} if widths else {})}
        return " ".join(["onelayer report", *_words(options)])

    def _fits(self, name: str) -> list[Command]:
        """Both networks' trainings of an exercise, or of the search's coarse stage as_published."""
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
        """Both networks' searches."""
        options = {k: v for k, v in self._changes.items() if not k.startswith("report.")}
        for key, value in self.schedule.items():
            options[f"schedule.{key}"] = value
            if key in ("step_size", "cycles"):
                options[f"final.{key}"] = value
        if (seeds := list(self.repeat.seeds[:5])) != read_configs("search")["final"]["seeds"]:
            options["final.seeds"] = seeds
        return [Command("search", "search", network, options) for network in NETWORKS]

    def _widths(self) -> Iterator[tuple[int, bool, Command]]:
        """Hidden units, whether images are changed, and the search of each row of the section."""
        given = {k: v for k, v in self._finds()[0].options.items() if not k.startswith("search.")}
        for augmented in (False, True):
            for hidden in self.repeat.widths:
                options = {"model.hidden": hidden, **OPTIONS[augmented], **given}
                name = f"{hidden}-augmented" if augmented else str(hidden)
                yield hidden, augmented, Command("search", "widths", name, options)

    def _width(self, hidden: int, augmented: bool, find: Command) -> WidthRow:
        return width_row(hidden, augmented, self._search(find).run())

    def _check(self) -> None:
        """Refuse now, not after hours, what would be refused then."""
        path, made = self.output / "report.md", f"Made by `{self._command}`"
        if path.is_file() and made not in path.read_text("utf-8", "replace"):
            raise InputError(
                f"{path} was not made by {self._command}, which would replace it:\n"
                "name another folder with --output, or move it away."
            )
        for name in (*EXERCISES, "as_published"):
            for fit in self._fits(name):
                fit.check()
        self._data.verify_test()
        for hidden in self.repeat.widths:
            check_whole("report.widths", hidden, 0)
        for find in [*self._finds(), *(find for *_, find in self._widths())]:
            self._search(find).check()

    # ---- runs

    def _folder(self, command: Command) -> Path:
        """Of a run: other settings, or images, make another name."""
        settings = {**command.settings, "dataset": self._data.name}
        if command.subcommand == "search":  # the rule and the members are applied afterwards
            settings["search"] = {**self._plan(command).as_dict(), "rule": None, "members": None}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self.runs / f"{command.name}-{command.network}-{digest[:8]}"

    def _settings(self, command: Command) -> dict[str, dict[str, Any]]:
        """A command's settings, and where the data lie, which changes no figure."""
        locations = {k: v for k, v in self.data.items() if k in LOCATION_ARGUMENTS}
        return {**command.settings, "data": {**command.settings["data"], **locations}}

    def _plan(self, find: Command) -> Plan:
        """Of λ: the report's own search has the options of its command."""
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
            trainer=settings.get("trainer", {}),
            curves=settings.get("curves", {}),
            test=settings.get("test", {}),
        )

    def _train(self, fit: Command) -> dict[str, Any]:
        """The result of a finished run of the same settings, else of a new one, or of the rest."""
        folder = self._folder(fit)
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):
            path = folder / "result.json"
            if not path.is_file():
                write_json(folder / "settings.json", fit.settings)  # for people: what is hashed
                title = EXERCISES[fit.name].title if fit.name in EXERCISES else "as published"
                words = [title, NETWORKS[fit.network], self._kind]
                title = ", ".join(filter(None, words))
                write_json(path, train_and_test(self._settings(fit), folder, title))
            return dict(json.loads(path.read_text("utf-8")))

    def _results(self, trainings: Sequence[Done], searches: Sequence[Done]) -> list[Result]:
        """The rows of the main table; a λ that was searched is hardly ever the published one."""
        rows = [
            (command, EXERCISES[command.name].title, result["members"], command.name)
            for command, result in trainings
        ]
        for command, found in searches:
            title = f"4.2 final, the λ = {found['l2']:.2g} that our search chose"
            same = found["l2"] == read_configs("final")["model"]["l2"]
            rows.append((command, title, found["final"]["members"], "final" if same else ""))
        return [
            Result(
                title,
                NETWORKS[command.network],
                members,
                EXERCISES.get(exercise) if self._published(command.network) else None,
            )
            for command, title, members, exercise in rows
        ]

    # ---- sections

    def _head(self) -> str:
        title = f", {self._kind}" if self._kind else ""
        text = (
            f"# The report's exercises, repeated{title}\n\n"
            f"Made by `{self._command}`, which runs what is missing and writes this page: every "
            f"training with {len(self.repeat.seeds)} seeds at once, as one population. Accuracies "
            "in %, mean ± standard deviation over seeds. *Published* is T. Perrot's report (KTH "
            "DD2424, April 2024), from one seed; *handout* the course's."
        )
        if self._kind:
            text += "\n\n**The settings are not the exercises', so nothing published is compared.**"
        if self._data.name == "synthetic":
            text += "\n\n**These figures are of the built-in synthetic images, not of CIFAR-10.**"
        return text

    def _gradients(self) -> str:
        X, y, dataset = batch(self._data.root)
        return (
            "## 1 Gradients\n\n"
            f"{len(X)} {dataset} images, {X.shape[1]} inputs, float64, h = 1e-5; largest relative "
            "error over all entries. The report: 1e-14 against autograd, 1e-4 against one-sided "
            "differences. Made by `onelayer gradcheck`.\n\n"
            + gradients_table(check_gradients(X, y))
        )

    def _picture(self, title: str, file: str, caption: str, command: Command | str) -> str:
        """A figure with what it shows and the command that makes it."""
        kind = f"{self._kind.capitalize()}. " if self._kind else ""
        return f"![{title}]({file})\n\n*{caption}. {kind}Made by* `{command}`"

    def _copied(self, title: str, command: Command, figure: str, caption: str = "") -> str:
        """A figure that a run has left."""
        network, file = NETWORKS[command.network], f"{command.name}-{command.network}.png"
        shutil.copy(self._folder(command) / figure, self.output / file)
        return self._picture(f"{title}, {network}", file, network + caption, command)

    def _curves(self, name: str) -> str:
        title, caption = EXERCISES[name].title, ": mean and standard deviation over seeds"
        pictures = [self._copied(title, fit, "curves.png", caption) for fit in self._fits(name)]
        return "\n\n".join([f"## {title}", *pictures])

    def _search_section(
        self, searches: Sequence[Done], coarse: Sequence[Sequence[dict[str, Any]]]
    ) -> str:
        sections = ["## 4.1 Search for λ"]
        for (find, found), as_published in zip(searches, coarse, strict=True):
            images = CIFAR10DataModule(**self._settings(find)["data"]).size("val")
            published = SEARCH if self._published(find.network) else {}
            sections += [
                self._copied("search", find, "search.png"),
                search_table(found, as_published, images, published),
            ]
        return "\n\n".join([*sections, self._as_published()])

    def _as_published(self) -> str:
        """What the column of that name is."""
        theirs = self._fits("as_published")[0].settings
        steps, rates = theirs["trainer"]["max_steps"], TriangularLR(**theirs["schedule"])
        cycles, ours = f"{steps / rates.cycle:g} cycles", self._finds()[0].settings["schedule"]
        return (
            f"*As published*: the report's code ran n_s = {rates.step_size} instead of "
            f"{ours['step_size']}, so that each of its trainings of {steps} updates was {cycles} "
            f"and stopped in mid-cycle, at η ≈ {rates.rate(steps):.2g}. onelayer runs it "
            f"(configs/as_published.yaml), and warns: *training stops in mid-cycle: {steps} "
            f"updates are {cycles} of {rates.cycle}*. That is why its search accuracies lie below "
            "ours."
        )

    def _widths_section(self, rows: Sequence[WidthRow]) -> str:
        atomic_write(self.output / "widths.csv", format_csv(rows))
        plot_widths(rows, KINDS, self.output / "widths.png", self._data.name)
        best, example = best_width(rows), [find for *_, find in self._widths()][-1]
        final, number = example.settings["final"], example.settings["search"]["number"]
        fewer, precision = OPTIONS[False]["final.cycles"], example.settings["trainer"]["precision"]
        caption = "means and standard deviations over seeds; every figure is in widths.csv"
        return "\n\n".join(
            [
                "## How far one layer goes",
                f"λ is chosen on validation for each width, of {number} on a grid, after a short "
                f"training; then {final['cycles']} cycles ({fewer} of images as they are) with "
                f"n_s = {final['step_size']} on all but {final['val_size']:,} images, in "
                f"{precision}, one training of all seeds. *Ensemble*: the mean probabilities of "
                "these networks over each image and its mirror image. By validation the best width "
                f"is {best['hidden']} hidden units, {KINDS[best['augmented']]}. A row is made by, "
                f"for example, `{example}`.",
                self._picture("widths", "widths.png", caption, self._command),
                widths_table(rows),
            ]
        )

    def _weights(self) -> str:
        sections = ["## Learnt weights as images"]
        for fit in self._fits("three_cycles"):
            network, file = NETWORKS[fit.network], f"weights-{fit.network}.png"
            state = read_checkpoint(last_of(self._folder(fit)))["state_dict"]
            name, titles, what = "W1", tuple[str, ...](), "its hidden units"
            if fit.network == "linear":
                name, titles, what = "W", tuple(self._data.classes), "the ten classes"
            plot_weights(state[name][0], self.output / file, titles)
            caption = (
                f"{network}, after three cycles, seed {self.repeat.seeds[0]}: the weights of "
                f"{what}, each scaled to its own range"
            )
            sections.append(self._picture(f"weights, {network}", file, caption, self._command))
        return "\n\n".join(sections)


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them, quoted for any shell."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in options.items()}
    return [f"--{k} {shlex.quote(text.replace(' ', ''))}" for k, text in texts.items()]

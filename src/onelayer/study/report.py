"""``onelayer report``: every exercise beside its published results, as Markdown with figures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onelayer.configs import read_configs
from onelayer.core.checks import check_whole
from onelayer.core.errors import InputError
from onelayer.core.gradcheck import check_gradients
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.study.comparison_figures import plot_widths
from onelayer.study.exercises import NETWORKS, Command, Done, Exercises
from onelayer.study.formatting import (
    Result,
    format_csv,
    gradients_table,
    main_table,
    search_table,
)
from onelayer.study.gradients import batch
from onelayer.study.published import EXERCISES, SEARCH
from onelayer.study.run import alone_in
from onelayer.study.widths import (
    KINDS,
    OPTIONS,
    WidthRow,
    best_width,
    widths_table,
)
from onelayer.training.checkpoint import read_checkpoint
from onelayer.training.files import atomic_write
from onelayer.training.folder import last_of
from onelayer.training.schedule import TriangularLR
from onelayer.training.weight_images import picture, save_picture


class Report(Exercises):
    """Runs the exercises and writes the report."""

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

    def _check(self) -> None:
        """Refuse now what a run would refuse after hours."""
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

    def _results(self, trainings: Sequence[Done], searches: Sequence[Done]) -> list[Result]:
        """Return the rows of the main table; a searched λ is rarely the published one."""
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
        """Return a figure in Markdown, with its caption and the command that makes it."""
        kind = f"{self._kind.capitalize()}. " if self._kind else ""
        return f"![{title}]({file})\n\n*{caption}. {kind}Made by* `{command}`"

    def _copied(self, title: str, command: Command, figure: str, caption: str = "") -> str:
        """Copy a run's figure and return it in Markdown."""
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
        """Explain the column "as published"."""
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
            sheet = picture(state[name][0], self._data.shape, titles)
            save_picture(sheet, self.output / file)
            caption = (
                f"{network}, after three cycles, seed {self.repeat.seeds[0]}: the weights of "
                f"{what}, each scaled to its own range"
            )
            sections.append(self._picture(f"weights, {network}", file, caption, self._command))
        return "\n\n".join(sections)

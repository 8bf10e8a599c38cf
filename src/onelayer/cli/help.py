"""Help texts: plain words, our options first, and the options of the data module that is named."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import DefaultHelpFormatter

ROLE = re.compile(r":[a-z]+(?::[a-z]+)?:`~?(?:[^`<]*<)?([^`>]+)>?`")
HELP = {
    "config": "YAML file, or the name of a shipped one.",
    "return_predictions": "Ignored: predictions are written to --output.",
    "weights_only": "Ignored: checkpoints are always read as plain tensors and values.",
    "verbose": "Whether Lightning prints a table of its own, too.",
    "ckpt_path": "Run folder, checkpoint file, or last for the newest run of the configuration.",
    "data": "Class of data: ArraysDataModule, DatasetDataModule, or package.module.Class.",
    "data.help": "Options of a class of data.",
    "print_config": "Print the configuration and exit.",
    "seed_everything": "Seed of Python, numpy and torch for modules of your own.",
    "trainer.callbacks": "Callbacks to add, by class name or path.",
    "trainer.plugins": "Plugins for precision, clusters or checkpoints, by class name or path.",
}
"""Descriptions that replace those of Lightning and jsonargparse."""
OUTPUT = {
    "fit": "Folder of the run; lightning_logs/<config>/version_N by default.",
    "validate": "Folder for validate.json.",
    "test": "Folder for test.json and test.png.",
    "predict": "CSV file to write.",
}
MEMBER = (
    "Networks that predict. best: the mean of those whose λ is best on validation. all: the mean "
    "of all. A number: that network alone."
)
HIDDEN = re.compile(r"trainer\..*\.help|model|schedule|curves|checkpoints|snapshots|test|trainer")
"""Options that help does not list: whole sections, and help on classes of the Trainer."""


def plain(text: str) -> str:
    """Return a docstring's text without the marks of reStructuredText.

    >>> plain("as :func:`~onelayer.core.solve` has it, ``1/n`` each")
    'as solve has it, 1/n each'
    """
    text = ROLE.sub(lambda found: found[1].rpartition(".")[2], text)
    text = re.sub(r"`([^`<]+) <[^`>]+>`_+", r"\1", text)
    return text.replace("``", "").replace("`", "")


class PlainHelp(DefaultHelpFormatter):
    """jsonargparse's formatter with plain descriptions, of the Trainer's flags one sentence."""

    def _get_help_string(self, action: Action) -> str:
        with _described(action):
            return super()._get_help_string(action)

    def _expand_help(self, action: Action) -> str:
        text = re.sub(r", known subclasses: [^)]*", "", super()._expand_help(action))
        if action.dest.startswith("trainer."):
            text = re.sub(r"(\.|\w) \(type: .*, default: (.*)\)$", r"\1 (default: \2)", text)
        return text

    def add_arguments(self, actions: Iterable[Action]) -> None:
        """Add a group's options."""
        shown = [a for a in actions if not HIDDEN.fullmatch(a.dest) and not _is_section(a)]
        super().add_arguments(shown)

    def start_section(self, heading: str | None) -> None:
        """Begin a group of options."""
        super().start_section(heading and plain(heading))

    def add_text(self, text: str | None) -> None:
        """Add a paragraph."""
        super().add_text(text and plain(text))


def _is_section(action: Action) -> bool:
    return action.help == "Path to a configuration file." and action.dest != "config"


@contextmanager
def _described(action: Action) -> Iterator[None]:
    before = action.help
    words = plain(HELP.get(action.dest, before or ""))
    if action.dest.startswith("trainer."):
        words = re.split(r"(?<=[a-z)\]])\. ", words.replace("\n", " "))[0].rstrip(".") + "."
    if before is not None or action.dest in HELP:
        action.help = words
    try:
        yield
    finally:
        action.help = before


def options_of(kind: type, parser: Any) -> str:
    """Return the options of a class of data as help lists them, ``--data.…``.

    Args:
        kind: class of data.
        parser: parser without options.
    """
    parser.add_class_arguments(kind, "data", fail_untyped=False)
    _, mark, options = str(parser.format_help()).partition("\n  --data.")
    return mark.strip() + options

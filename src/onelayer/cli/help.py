"""Help texts: plain words without Sphinx's marks, and the options of the data module named."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import DefaultHelpFormatter

ROLE = re.compile(r":[a-z]+(?::[a-z]+)?:`~?(?:[^`<]*<)?([^`>]+)>?`")
HELP = {
    "return_predictions": "Ignored: predictions are written to --output.",
    "weights_only": "Ignored: checkpoints are always read as plain tensors and values.",
    "verbose": "Whether Lightning prints a table of its own, too.",
    "ckpt_path": "Run folder, checkpoint file, or last for the newest run of the configuration.",
    "data.help": "Options of a class of data.",
}
"""Descriptions in place of Lightning's, of options that mean something else here."""


def plain(text: str) -> str:
    """Return a docstring's text without the marks of reStructuredText.

    >>> plain("as :func:`~onelayer.core.solve` has it, ``1/n`` each")
    'as solve has it, 1/n each'
    """
    text = ROLE.sub(lambda found: found[1].rpartition(".")[2], text)
    text = re.sub(r"`([^`<]+) <[^`>]+>`_+", r"\1", text)
    return text.replace("``", "").replace("`", "")


class PlainHelp(DefaultHelpFormatter):
    """jsonargparse's formatter, with plain descriptions."""

    def _get_help_string(self, action: Action) -> str:
        with _described(action):
            return super()._get_help_string(action)

    def start_section(self, heading: str | None) -> None:
        """Begin a group of options."""
        super().start_section(heading and plain(heading))

    def add_text(self, text: str | None) -> None:
        """Add a paragraph."""
        super().add_text(text and plain(text))


@contextmanager
def _described(action: Action) -> Iterator[None]:
    before = action.help
    if before is not None or action.dest in HELP:
        action.help = plain(HELP.get(action.dest, before or ""))
    try:
        yield
    finally:
        action.help = before


def options_of(kind: type, parser: Any) -> str:
    """Return the options of a class of data as help lists them, ``--data.…``.

    Args:
        kind: the class.
        parser: a parser that has no options yet.
    """
    parser.add_class_arguments(kind, "data", fail_untyped=False)
    _, mark, options = str(parser.format_help()).partition("\n  --data.")
    return mark.strip() + options

"""The sections of options that subcommands share, and what becomes of those that one cannot use."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from onelayer.cli.parser import Parser
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.saving import Checkpoints, Snapshots
from onelayer.training.schedule import TriangularLR
from onelayer.training.trainer import trainer_defaults

SECTIONS: dict[str, type] = {
    "model": OneLayer,
    "data": CIFAR10DataModule,
    "schedule": TriangularLR,
    "curves": Curves,
    "checkpoints": Checkpoints,
    "snapshots": Snapshots,
    "test": Results,
    "trainer": Trainer,
}
WAYS = (Trainer.fit, Trainer.validate, Trainer.test, Trainer.predict)
OTHERS = {"seed_everything": False, "output": None, "member": "best", "optimizer": None}
"""Options of fit, validate, test and predict that have no section, with their defaults."""


def add_section(parser: Parser, name: str, *only: str) -> None:
    """Add a section with the names, types and defaults that it has in ``fit``.

    Args:
        parser: of a subcommand.
        name: of the section.
        only: the options that the subcommand uses; all by default.
    """
    kind = SECTIONS[name]
    skip = set(inspect.signature(kind).parameters) - set(only) if only else set[str]()
    parser.add_class_arguments(kind, name, skip=skip)


def add_data(parser: Parser, of_a_class: bool) -> None:
    """Add the options of the data module that is named, or of CIFAR10DataModule."""
    parser.data_of_a_class = of_a_class
    if of_a_class:
        parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False)
    else:
        parser.add_class_arguments(CIFAR10DataModule, "data", skip={"images", "predict"})


@cache
def every_option() -> Mapping[str, Any]:
    """Return the options of all subcommands with their defaults, those of ``fit`` where it has one.

    Making every parser takes half a second, so this is called only when an option is unknown.
    """
    from onelayer.cli.commands import PARSERS

    fit = Parser()
    for name in SECTIONS:
        add_section(fit, name)
    options = dict[str, Any]()
    for parser in (*(make([]) for make in PARSERS.values()), fit):
        options |= {action.dest: action.default for action in parser._actions}
    options |= {f"trainer.{name}": value for name, value in trainer_defaults().items()}
    options["snapshots.last"] = 0
    for way in WAYS:
        known = inspect.signature(way).parameters.values()
        options |= {p.name: p.default for p in known if p.default is not p.empty}
    return {**options, **OTHERS, "data.class_path": None, "data.init_args": None}


def usable(parser: Parser, content: dict[str, Any]) -> dict[str, Any] | None:
    """Return a config's content without the options of other subcommands, which a line names.

    Options that no subcommand has stay, and the parser refuses them.

    Returns:
        None where the subcommand uses all of them.
    """
    unused = {name: value for name, value in _unused(parser, content) if name in every_option()}
    if not unused:
        return None
    if told := _told(content, unused):
        command = parser.command or "this command"
        words = f"onelayer: warning: {command} does not use {', '.join(told)} of the config"
        if words not in parser.told:
            parser.told.add(words)
            print(words, file=sys.stderr)
    kept = dict[str, Any]()
    for key, value in content.items():
        if isinstance(value, dict) and value:
            value = {k: v for k, v in value.items() if f"{key}.{k}" not in unused}
            if value:
                kept[key] = value
        elif key not in unused:
            kept[key] = value
    return kept


def _told(content: dict[str, Any], unused: Mapping[str, Any]) -> list[str]:
    """Return the names to tell, ``section.*`` for a whole one; a run's config.yaml has defaults."""
    usual, sections = every_option(), dict[str, list[str]]()
    for name, value in unused.items():
        section = name.partition(".")[0]
        of_fit = section in SECTIONS or name in (*OTHERS, "ckpt_path", "weights_only", "verbose")
        if not of_fit or value != usual[name]:
            sections.setdefault(section, []).append(name)
    told = list[str]()
    for section, names in sections.items():
        inner = content[section]
        whole = isinstance(inner, dict) and len(inner) == len(names)
        told += [f"{section}.*"] if whole else names
    return told


def _unused(parser: Parser, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give the options, with their values, that a parser does not have."""
    known = {action.dest for action in parser._actions}
    groups = {name.rpartition(".")[0] for name in known}
    for key, value in content.items():
        inner = value if isinstance(value, dict) and value else None
        if key == "data" and parser.data_of_a_class and inner:
            if "class_path" in inner:
                continue
            yield from ((f"data.{name}", given) for name, given in inner.items())
        elif key in known and key not in groups:
            continue
        elif inner is None:
            if key not in known | groups:
                yield key, value
        else:
            for name, given in inner.items():
                if f"{key}.{name}" not in known | groups:
                    yield f"{key}.{name}", given

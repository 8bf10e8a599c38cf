"""The sections of options that commands share, and the options of a config that one cannot use."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import (  # type: ignore[attr-defined]
    ActionConfigFile,
    LightningCLI,
)

from onelayer.cli import describe
from onelayer.cli.data_options import class_of, names_a_class
from onelayer.cli.parser import Parser
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.saving import Checkpoints, Snapshots
from onelayer.training.schedule import TriangularLR
from onelayer.training.trainer import trainer_defaults

SHARED: dict[str, type] = {
    "model": OneLayer,
    "data": CIFAR10DataModule,
    "schedule": TriangularLR,
    "curves": Curves,
    "snapshots": Snapshots,
    "checkpoints": Checkpoints,
    "test": Results,
    "trainer": Trainer,
}
NO_DATA = ("images", "predict")  # options of data that only predict uses
OTHERS = {
    "seed_everything": False, "output": None, "storage": None, "member": "best", "optimizer": None,
    "data.class_path": None, "data.init_args": None, "snapshots.last": 0,
}  # fmt: skip
"""Options of any command, with their defaults, that are no argument of a class."""


def own_sections() -> dict[str, type]:
    """Return the sections that one command adds."""
    from onelayer.study.l2_path import Grid
    from onelayer.study.lr_range import Rates
    from onelayer.study.plan import Final, Plan, Repeat

    return {"range": Rates, "search": Plan, "final": Final, "solve": Grid, "report": Repeat}


def command_parser(command: str, uses: Mapping[str, tuple[str, ...]], argv: list[str]) -> Parser:
    """Return the parser of a command of ours.

    Args:
        command: its name.
        uses: options that the command uses, by section; () for all of a section.
        argv: words after the command.
    """
    usage = f"onelayer {command} [-c CONFIG] [options]"
    parser = Parser(prog=f"onelayer {command}", usage=usage, description=describe(command))
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="YAML file, or a shipped one's name."
    )
    output = "report" if command == "report" else None
    parser.add_argument(
        "--output", type=str | None, default=output,
        help=f"Folder for results; {output or 'lightning_logs/<config>'} by default.",
    )  # fmt: skip
    kinds = {**own_sections(), **SHARED}
    for section, names in uses.items():
        if section == "data" and not names:
            add_data(parser, argv)
            continue
        skip = set(inspect.signature(kinds[section]).parameters) - set(names) if names else set()
        parser.add_class_arguments(kinds[section], section, skip=skip)
    return parser


def add_data(parser: Parser, argv: list[str]) -> None:
    """Add the options of the data module that the words name, or of CIFAR10DataModule."""
    parser.data_of_a_class = names_a_class(argv)
    parser.data_class = class_of(argv)
    if parser.data_of_a_class:
        parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False)
    else:
        parser.add_class_arguments(CIFAR10DataModule, "data", skip=set(NO_DATA))


def given(section: Namespace) -> dict[str, Any]:
    """Return the options of a section that were given: those that are not None."""
    return {name: value for name, value in section.as_dict().items() if value is not None}


@cache
def every_option() -> Mapping[str, Any]:
    """Return the options of all commands with their defaults."""
    options = {
        f"{section}.{p.name}": p.default
        for section, kind in {**own_sections(), **SHARED}.items()
        for p in inspect.signature(kind).parameters.values()
    }
    options |= {f"trainer.{name}": value for name, value in trainer_defaults().items()}
    for command, skipped in LightningCLI.subcommands().items():
        known = inspect.signature(getattr(Trainer, command)).parameters.values()
        options |= {p.name: p.default for p in known if p.name not in {"self", *skipped}}
    return options | OTHERS


def usable(parser: Parser, content: dict[str, Any]) -> dict[str, Any] | None:
    """Return a config's content without the options of other commands, which a line names.

    Options that no command has stay, and the parser refuses them.

    Returns:
        None if the command uses all of them.
    """
    unused = {name: value for name, value in _unknown(parser, content) if name in every_option()}
    if not unused:
        return None
    if named := _named(content, unused):
        command = parser.command or "this command"
        words = f"onelayer: warning: {command} does not use {', '.join(named)} of the config"
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


def _named(content: dict[str, Any], unused: Mapping[str, Any]) -> list[str]:
    """Return the unused options to name, ``section.*`` for a complete one.

    The config.yaml of a run has every option of the shared sections; defaults are not named.
    """
    sections = dict[str, list[str]]()
    for name, value in unused.items():
        section = name.partition(".")[0]
        if section in own_sections() or value != every_option()[name]:
            sections.setdefault(section, []).append(name)
    named = list[str]()
    for section, names in sections.items():
        inner = content[section]
        complete = isinstance(inner, dict) and len(inner) == len(names)
        named += [f"{section}.*"] if complete else names
    return named


def _unknown(parser: Parser, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options of a config, with their values, that a parser does not have."""
    known = {action.dest for action in parser._actions}
    known |= {name.rpartition(".")[0] for name in known}
    for key, value in content.items():
        of_class = key == "data" and parser.data_of_a_class and isinstance(value, dict)
        if of_class and "class_path" in value:
            continue
        if isinstance(value, dict) and value and (key in SHARED or key in own_sections()):
            options = {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            options = {key: value}
        yield from ((k, v) for k, v in options.items() if of_class or k not in known)

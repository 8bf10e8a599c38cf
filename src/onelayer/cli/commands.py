"""One command, from its words to its exit code."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import onelayer.training  # noqa: F401 - it makes lightning importable

# isort: split
from jsonargparse import Namespace

from onelayer.cli.data_options import class_first
from onelayer.cli.messages import explained, quiet, signals
from onelayer.cli.parser import (
    RUNS,
    Parser,
    configs_first,
    names_of,
    output_of,
    several_images,
)
from onelayer.cli.sections import command_parser, given
from onelayer.study.plan import AXES, Final, Plan, Repeat
from onelayer.training.trainer import device_of


def run(argv: list[str]) -> int:
    """Run one command and return the exit code.

    Raises:
        InputError: for a mistake in what the user gave.
        DivergedError: if a run cannot recover.
        Stopped: if a signal stopped a run.
        KeyboardInterrupt: if a signal came before anything could be saved; Terminated for SIGTERM.
    """
    command, *rest = argv
    Parser.command = command
    Parser.told.clear()
    with quiet(), signals(), explained():
        if command in PLAIN:
            return int(import_module(PLAIN[command]).main(rest))
        rest = class_first(configs_first(rest))
        if command in COMMANDS:
            return _run_ours(command, rest)
        from onelayer.cli.app import OneLayerCLI
        from onelayer.cli.resuming import with_own_config

        images = list[str]()
        if command == "fit":
            rest = with_own_config(rest)
        elif command == "predict":
            rest, images = several_images(rest)
        return OneLayerCLI([command, *rest], images).exit_code


def _run_ours(command: str, argv: list[str]) -> int:
    uses, act = COMMANDS[command]
    parser = command_parser(command, uses, argv)
    for section in ("trainer", "curves", "test", "schedule"):  # a command has its own defaults
        parser.set_defaults({f"{section}.{name}": None for name in uses.get(section, ())})
    if command == "search":
        parser.set_defaults({"model.hidden": 50})
        parser.add_argument("--storage", type=str | None, help="URL of the trial database.")
    config = parser.parse_args(argv)
    device_of(given(config.trainer))  # refuses now, before anything is made
    config.output = output_of(config) or Path(RUNS, names_of(config.config) or command)
    act(config)
    return 0


def _range(config: Namespace) -> None:
    from onelayer.study.lr_range import Range, Rates

    Range(
        rates=Rates(**config.range.as_dict()),
        model=config.model.as_dict(),
        data=config.data.as_dict(),
        output=config.output,
        trainer=given(config.trainer),
    ).run()


def _search(config: Namespace) -> None:
    from onelayer.study.search import Search

    Search(
        plan=Plan(**config.search.as_dict()),
        model=config.model.as_dict(),
        data=config.data.as_dict(),
        schedule=config.schedule.as_dict(),
        final=Final(**config.final.as_dict()),
        output=config.output,
        storage=config.storage,
        trainer=given(config.trainer),
        curves=given(config.curves),
        test=given(config.test),
    ).run()


def _solve(config: Namespace) -> None:
    from onelayer.study.l2_path import Grid, Solve

    Solve(
        grid=Grid(**config.solve.as_dict()),
        data=config.data.as_dict(),
        output=config.output,
        class_weight=config.model.class_weight,
        trainer=given(config.trainer),
    ).run()


def _report(config: Namespace) -> None:
    from onelayer.study.report import Report

    path = Report(
        output=config.output,
        data=given(config.data),
        repeat=Repeat(**config.report.as_dict()),
        search=Plan(**config.search.as_dict()),
        schedule=given(config.schedule),
        trainer=given(config.trainer),
    ).write()
    print(f"report: {path}")


PLAIN = {
    "gradcheck": "onelayer.study.gradients",
    "export": "onelayer.cli.export_command",
    "features": "onelayer.cli.features_command",
}
"""Modules of the commands without sections and configs, whose ``main`` takes the words."""
DEVICE = ("accelerator", "devices")
CLASSES = ("class_weight",)
Uses = dict[str, tuple[str, ...]]
COMMANDS: dict[str, tuple[Uses, Callable[[Namespace], Any]]] = {
    "range": (
        {
            "range": (),
            "model": ("hidden", "l2", "seeds", "init_std", "dropout", "label_smoothing", *CLASSES),
            "data": (),
            "trainer": ("accelerator", "devices", "precision"),
        },
        _range,
    ),
    "search": (
        {
            "search": (),
            "model": ("hidden", "dropout", "label_smoothing", *CLASSES),
            "data": (),
            "schedule": (),
            "final": (),
            "trainer": ("accelerator", "devices", "precision"),
            "curves": ("per_cycle", "train_rows"),
            "test": ("mirror",),
        },
        _search,
    ),
    "solve": (
        {"solve": (), "model": CLASSES, "data": (), "trainer": DEVICE},
        _solve,
    ),
    "report": (
        {
            "report": (),
            "search": tuple(name for name in Plan.__dataclass_fields__ if name not in AXES),
            "data": ("root", "source", "limit"),
            "schedule": ("step_size",),
            "trainer": DEVICE,
        },
        _report,
    ),
}
"""Options by section, and function of each command that is no Trainer method."""

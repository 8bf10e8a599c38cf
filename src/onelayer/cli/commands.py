"""One subcommand, from its words to its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

import onelayer.training  # noqa: F401 - it makes lightning importable

# isort: split
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ActionConfigFile  # type: ignore[attr-defined]

from onelayer.cli.data import class_first, class_of, names_a_class
from onelayer.cli.faults import explained, quiet, signals
from onelayer.cli.fit import RUNS, OneLayerCLI, with_own_config
from onelayer.cli.parser import Parser, configs_first, names_of, several_images
from onelayer.data.datamodule import CIFAR10DataModule
from onelayer.training.schedule import TriangularLR


def run(argv: list[str]) -> int:
    """Run one subcommand; the exit code.

    Raises:
        InputError: for a mistake in what the user gave.
        DivergedError: if a training cannot come back.
        Stopped: if a signal stopped a training.
        KeyboardInterrupt: if a signal came where nothing could be saved; Terminated for SIGTERM.
    """
    command, *rest = argv
    with quiet(), signals(), explained():
        if command == "gradcheck":
            from onelayer.study.gradients import main

            return main(rest)
        rest = class_first(configs_first(rest))
        if command in COMMANDS:
            return COMMANDS[command](rest)
        images = list[str]()
        if command == "fit":
            rest = with_own_config(rest)
        elif command == "predict":
            rest, images = several_images(rest)
        return OneLayerCLI([command, *rest], images).exit_code


def _parser(command: str, description: str) -> Parser:
    usage = f"onelayer {command} [-c CONFIG] [options]"
    parser = Parser(prog=f"onelayer {command}", usage=usage, description=description)
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="YAML file, or a shipped one's name."
    )
    return parser


def _add_data(parser: Parser, argv: list[str]) -> None:
    """The options of the data module that is typed, or of CIFAR10DataModule."""
    parser.data_of_a_class, parser.data_class = names_a_class(argv), class_of(argv)
    if parser.data_of_a_class:
        parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False)
    else:
        parser.add_class_arguments(CIFAR10DataModule, "data", skip={"images", "predict"})


def _add_regularisers(parser: Parser) -> None:
    for name, what in (
        ("dropout", "Probability p that a hidden unit is left out of an update."),
        ("label_smoothing", "Share s of a label that is spread over all classes."),
    ):
        parser.add_argument(f"--model.{name}", type=float, default=0.0, help=what)


def search(argv: list[str]) -> int:
    """``onelayer search``."""
    from onelayer.study.plan import Plan
    from onelayer.study.search import Final, Search

    parser = _parser(
        "search", "Search λ (l2) from coarse to fine, and a few values of other arguments."
    )
    parser.add_class_arguments(Plan, "search")
    parser.add_argument("--model.hidden", type=int, default=50, help="Hidden units; 0: linear.")
    _add_regularisers(parser)
    _add_data(parser, argv)
    parser.add_class_arguments(TriangularLR, "schedule")
    parser.add_class_arguments(Final, "final")
    for name, kind, what in (
        ("trainer.precision", str | None, "Of every training; the Trainer's own."),
        ("curves.per_cycle", int | None, "Measurements of the final training."),
        (
            "curves.train_rows",
            int | None,
            "Rows of the training split measured; all of CIFAR-10's.",
        ),
        ("test.mirror", bool | None, "Whether mirror images are tested, too."),
    ):
        parser.add_argument(f"--{name}", type=kind, help=what)
    parser.add_argument("--storage", type=str | None, help="URL of the ledger's database.")
    parser.add_argument("--output", type=str | None, help="Folder; lightning_logs/<config>.")
    config = parser.parse_args(argv)
    output = config.output or Path(RUNS, names_of(config.config) or "search")
    Search(
        plan=Plan(**config.search.as_dict()),
        **config.model.as_dict(),
        data=config.data.as_dict(),
        schedule=config.schedule.as_dict(),
        final=Final(**config.final.as_dict()),
        output=Path(output),
        storage=config.storage,
        trainer=_given(config.trainer),
        curves=_given(config.curves),
        test=_given(config.test),
    ).run()
    return 0


def _given(section: Namespace) -> dict[str, Any]:
    """The options of a section that were given."""
    return {name: value for name, value in section.as_dict().items() if value is not None}


def report(argv: list[str]) -> int:
    """``onelayer report``."""
    from onelayer.study.plan import AXES, Plan
    from onelayer.study.report import Report

    parser = _parser("report", "Repeat the exercises beside their published figures.")
    parser.add_argument("--output", type=str, default="docs/report", help="Folder of report.md.")
    parser.add_argument("--runs", type=str, default=f"{RUNS}/report", help="Folder of the runs.")
    parser.add_argument(
        "--seeds", type=list[int], default=list(range(10)), help="Of each training."
    )
    parser.add_class_arguments(Plan, "search", skip=set(AXES))
    for name, kind, what in (
        ("root", str | None, "Folder of CIFAR-10; ONELAYER_DATA or data."),
        ("source", str, "cifar10, synthetic or auto."),
        ("limit", int | None, "Keep only so many images of each split: a quick report."),
    ):
        default = "cifar10" if name == "source" else None
        parser.add_argument(f"--data.{name}", type=kind, default=default, help=what)
    parser.add_argument(
        "--step_size", type=int | None, help="n_s of every training: a quick report."
    )
    parser.add_argument(
        "--widths",
        type=list[int],
        default=[],
        help="Hidden units of a section on how far one layer goes; 0 is linear. It takes long.",
    )
    config = parser.parse_args(argv)
    short = None if config.step_size is None else {"step_size": config.step_size}
    path = Report(
        output=Path(config.output),
        runs=Path(config.runs),
        data=_given(config.data),
        seeds=config.seeds,
        search=Plan(**config.search.as_dict()),
        schedule=short,
        widths=config.widths,
    ).write()
    print(f"report: {path}")
    return 0


def lr_range(argv: list[str]) -> int:
    """``onelayer range``."""
    from onelayer.study.range import Range

    parser = _parser("range", "Learning rate range test: which rates a cycle may go between.")
    parser.add_argument("--model.hidden", type=int, default=0, help="Hidden units; 0: linear.")
    parser.add_argument(
        "--model.l2", type=float | list[float], default=0.0, help="λ, or a list of several."
    )
    parser.add_argument(
        "--model.seeds", type=int | list[int], default=0, help="Of the initial weights."
    )
    _add_regularisers(parser)
    _add_data(parser, argv)
    parser.add_class_arguments(Range, skip={"model", "data", "output"})
    parser.add_argument("--output", type=str | None, help="Folder; lightning_logs/<config>.")
    config = parser.parse_args(argv)
    Range(
        model=config.model.as_dict(),
        data=config.data.as_dict(),
        output=Path(config.output or Path(RUNS, names_of(config.config) or "range")),
        **{name: config[name] for name in ("min_lr", "max_lr", "steps", "points")},
    ).run()
    return 0


def solve(argv: list[str]) -> int:
    """``onelayer solve``."""
    from onelayer.study.solve import Grid, Solve

    parser = _parser("solve", "The linear layer's optimum for every λ (l2), with a certificate.")
    parser.add_class_arguments(Grid)
    _add_data(parser, argv)
    parser.add_argument("--output", type=str | None, help="Folder; lightning_logs/<config>.")
    config = parser.parse_args(argv).as_dict()
    output = config.pop("output") or Path(RUNS, names_of(config["config"]) or "solve")
    grid = {name: config[name] for name in Grid.__dataclass_fields__}
    Solve(Grid(**grid), config["data"], Path(output)).run()
    return 0


COMMANDS = {"search": search, "report": report, "range": lr_range, "solve": solve}
"""Those that need no Trainer of LightningCLI's, nor what is imported for it."""

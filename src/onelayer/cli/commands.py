"""One subcommand, from its words to its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

import onelayer.training  # noqa: F401 - it makes lightning importable

# isort: split
from lightning.pytorch.cli import ActionConfigFile  # type: ignore[attr-defined]

from onelayer.cli.data_options import class_first, class_of, names_a_class
from onelayer.cli.faults import explained, quiet, signals
from onelayer.cli.fit import RUNS, OneLayerCLI, with_own_config
from onelayer.cli.parser import Parser, configs_first, names_of, several_images
from onelayer.cli.sections import add_data, add_section


def run(argv: list[str]) -> int:
    """Run one subcommand; the exit code.

    Raises:
        InputError: for a mistake in what the user gave.
        DivergedError: if a training cannot come back.
        Stopped: if a signal stopped a training.
        KeyboardInterrupt: if a signal came where nothing could be saved; Terminated for SIGTERM.
    """
    command, *rest = argv
    Parser.command = command
    Parser.told.clear()
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


def _search_parser(argv: list[str]) -> Parser:
    from onelayer.study.plan import Plan
    from onelayer.study.search import Final

    parser = _parser(
        "search", "Search λ (l2) from coarse to fine, and a few values of other arguments."
    )
    parser.add_class_arguments(Plan, "search")
    add_section(parser, "model", "hidden", "dropout", "label_smoothing")
    parser.set_defaults({"model.hidden": 50})
    add_data(parser, names_a_class(argv))
    parser.data_class = class_of(argv)
    add_section(parser, "schedule")
    parser.add_class_arguments(Final, "final")
    add_section(parser, "trainer", "precision")
    add_section(parser, "curves", "per_cycle", "train_rows")  # of the final training
    add_section(parser, "test", "mirror")
    ours = ("curves.per_cycle", "curves.train_rows", "test.mirror")
    parser.set_defaults(dict.fromkeys(ours))  # None: as the final training has them
    parser.add_argument("--storage", type=str | None, help="URL of the ledger's database.")
    parser.add_argument("--output", type=str | None, help="Folder; lightning_logs/<config>.")
    return parser


def search(argv: list[str]) -> int:
    """``onelayer search``."""
    from onelayer.study.plan import Plan
    from onelayer.study.search import Final, Search

    parser = _search_parser(argv)
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


def _report_parser(argv: list[str]) -> Parser:
    from onelayer.study.plan import AXES, Plan

    parser = _parser("report", "Repeat the exercises beside their published figures.")
    parser.add_argument("--output", type=str, default="report", help="Folder of report.md.")
    parser.add_argument("--runs", type=str, default=f"{RUNS}/report", help="Folder of the runs.")
    parser.add_argument(
        "--seeds", type=list[int], default=list(range(10)), help="Of each training."
    )
    parser.add_class_arguments(Plan, "search", skip=set(AXES))
    add_section(parser, "data", "root", "source", "limit")
    parser.add_argument(
        "--step_size", type=int | None, help="n_s of every training: a quick report."
    )
    parser.add_argument(
        "--widths",
        type=list[int],
        default=[],
        help="Hidden units of a section on how far one layer goes; 0 is linear. It takes long.",
    )
    return parser


def report(argv: list[str]) -> int:
    """``onelayer report``."""
    from onelayer.study.plan import Plan
    from onelayer.study.report import Report

    parser = _report_parser(argv)
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


def _range_parser(argv: list[str]) -> Parser:
    from onelayer.study.range import Range

    parser = _parser("range", "Learning rate range test: which rates a cycle may go between.")
    model = ("hidden", "l2", "seeds", "init_std", "dropout", "label_smoothing")
    add_section(parser, "model", *model)
    add_data(parser, names_a_class(argv))
    parser.data_class = class_of(argv)
    add_section(parser, "trainer", "precision")
    parser.add_class_arguments(Range, skip={"model", "data", "output", "trainer"})
    parser.add_argument("--output", type=str | None, help="Folder; lightning_logs/<config>.")
    return parser


def lr_range(argv: list[str]) -> int:
    """``onelayer range``."""
    from onelayer.study.range import Range

    parser = _range_parser(argv)
    config = parser.parse_args(argv)
    Range(
        model=config.model.as_dict(),
        data=config.data.as_dict(),
        output=Path(config.output or Path(RUNS, names_of(config.config) or "range")),
        **{name: config[name] for name in ("min_lr", "max_lr", "steps", "points")},
        trainer=_given(config.trainer),
    ).run()
    return 0


def _solve_parser(argv: list[str]) -> Parser:
    from onelayer.study.solve import Grid

    parser = _parser("solve", "The linear layer's optimum for every λ (l2), with a certificate.")
    parser.add_class_arguments(Grid)
    add_data(parser, names_a_class(argv))
    parser.data_class = class_of(argv)
    parser.add_argument("--output", type=str | None, help="Folder; lightning_logs/<config>.")
    return parser


def solve(argv: list[str]) -> int:
    """``onelayer solve``."""
    from onelayer.study.solve import Grid, Solve

    config = _solve_parser(argv).parse_args(argv).as_dict()
    output = config.pop("output") or Path(RUNS, names_of(config["config"]) or "solve")
    grid = {name: config[name] for name in Grid.__dataclass_fields__}
    Solve(Grid(**grid), config["data"], Path(output)).run()
    return 0


PARSERS = {
    "search": _search_parser,
    "report": _report_parser,
    "range": _range_parser,
    "solve": _solve_parser,
}
COMMANDS = {"search": search, "report": report, "range": lr_range, "solve": solve}
"""Those that need no Trainer of LightningCLI's, nor what is imported for it."""

"""The command line: LightningCLI's subcommands and our own.

Imports everything; ``onelayer.__main__`` answers what needs none of it.
"""

from __future__ import annotations

import csv
import difflib
import logging
import os
import re
import signal
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import onelayer.training  # noqa: F401 - it makes lightning importable

# isort: split
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import (  # type: ignore[attr-defined]
    ActionConfigFile,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import DistError

from onelayer._compat import accelerator
from onelayer.config_files import check_configs, configs_first
from onelayer.core.errors import InputError, TrainingError, first_line
from onelayer.data.datamodule import CIFAR10DataModule
from onelayer.training.checkpoint import (
    FOLDER,
    LAST,
    AtomicCheckpointIO,
    Checkpoints,
    find_checkpoint,
    last_of,
    read_checkpoint,
)
from onelayer.training.curves import Curves
from onelayer.training.folder import run_folder
from onelayer.training.interrupt import Stopped, Terminated
from onelayer.training.module import OneLayer
from onelayer.training.results import Results, format_summary
from onelayer.training.schedule import TriangularLR

RUNS = "lightning_logs"
SPLIT = ("train_batches", "val_batches", "val_size", "limit")
"""The options of data that say which images a split has."""


def run(argv: list[str]) -> int:
    """Run one subcommand; the exit code.

    Raises:
        InputError: for a mistake in what the user gave.
        DivergedError: if a training cannot come back.
        Stopped: if a signal stopped a training.
        KeyboardInterrupt: if a signal came where nothing could be saved; Terminated for SIGTERM.
    """
    with _quiet(), _signals():
        return _run(argv)


def _run(argv: list[str]) -> int:
    command, *rest = argv
    if command == "gradcheck":
        from onelayer.study.gradients import main

        return main(rest)
    check_configs(rest)
    rest = configs_first(rest)
    if command == "search":
        return search(rest)
    if command == "report":
        return report(rest)
    try:
        OneLayerCLI([command, *rest])
    except MisconfigurationException as error:  # options that Lightning refuses together
        raise InputError(str(error)) from error
    except ValueError as error:
        if not str(error).startswith("Does not validate"):  # jsonargparse, when it saves the config
            raise
        raise InputError(_shorten(str(error))) from error
    except ImportError as error:  # of what an option asks for
        raise InputError(f"{first_line(error)}: is its package installed?") from error
    except RuntimeError as error:
        if "conditioned on metric" in str(error):  # EarlyStopping's word for a wrong monitor
            raise InputError(first_line(error)) from error
        if "gloo" in str(error).lower() or isinstance(error, DistError):
            raise TrainingError(
                "another process of this training has ended, and so does this one. What was saved "
                "is whole:\nthe same command with --ckpt_path last goes on from there."
            ) from error
        if "loading state_dict" in str(error):  # torch has found other names or shapes in it
            told = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
            raise InputError(
                f"the checkpoint is of another network than this: {told[:300]}\n"
                "Name a checkpoint that onelayer fit wrote."
            ) from error
        raise
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Lightning says to its own developers; warn in plain lines."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
        warnings.filterwarnings("ignore", message="GPU available but not used")  # as it was told
        # The curves and the learning rate are logged by the number of updates, not by the epoch's.
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval")
        as_before = warnings.formatwarning
        warnings.formatwarning = lambda message, *_: f"onelayer: warning: {message}\n"
        try:
            yield
        finally:
            warnings.formatwarning = as_before


class Parser(LightningArgumentParser):
    """jsonargparse's parser, whose errors are a few lines and whose options have one spelling."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a few lines instead of printing the whole usage and exiting."""
        raise InputError(_shorten(message) + self._nearest(message)) from ex

    def _nearest(self, message: str) -> str:
        """The option that was probably meant, where the message names one that is none."""
        if re.search(r"unrecognized arguments: [^-]", message):
            return "\nA value of several is typed as one word: '[a,b]'."
        unknown = re.search(r"(?:arguments: --|option ')([\w.]+)", message)
        if not unknown:
            return ""
        options = {option for parser in self._all_parsers() for option in parser}
        near = difflib.get_close_matches(unknown[1], options, n=1, cutoff=0.7)
        return f"\nDid you mean {near[0]}?" if near else ""

    def _all_parsers(self) -> Iterator[list[str]]:
        for action in self._actions:
            for parser in getattr(action, "choices", None) or {}:
                choice = action.choices[parser] if isinstance(action.choices, dict) else None
                if isinstance(choice, Parser):
                    yield from choice._all_parsers()
        yield [action.dest for action in self._actions]


def _shorten(message: str) -> str:
    """Jsonargparse's message in two lines: the key, and what is legal and what was given."""
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line, following in pairwise([*lines, ""]):
        if line.startswith("- ") and not line.startswith(("- Expected", "- Not a valid subclass")):
            reason = line.removeprefix("- ")
            return f"{lines[0]}: {reason} {following if reason.endswith(':') else ''}".strip()
    expected = [line.removeprefix("- Expected ") for line in lines if line.startswith("- Expected")]
    given = [line for line in lines if line.startswith("Given value:")]
    if expected and given:
        return f"{lines[0]} expected {' or '.join(expected)}. {given[0][:200]}"
    return "\n".join(lines[:3])


def search(argv: list[str]) -> int:
    """``onelayer search``."""
    from onelayer.study.plan import Plan
    from onelayer.study.search import Final, Search

    parser = Parser(
        prog="onelayer search", description="Search the regulariser λ (l2) from coarse to fine."
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file of options.")
    parser.add_class_arguments(Plan, "search")
    parser.add_argument("--model.hidden", type=int, default=50, help="Hidden units; 0: linear.")
    parser.add_class_arguments(CIFAR10DataModule, "data", skip={"images"})
    parser.add_class_arguments(TriangularLR, "schedule")
    parser.add_class_arguments(Final, "final")
    parser.add_argument("--storage", type=str | None, help="URL of the ledger's database.")
    parser.add_argument("--output", type=str | None, help="Folder; lightning_logs/<config>.")
    config = parser.parse_args(argv)
    output = config.output or os.path.join(RUNS, _stem(config.config) or "search")
    Search(
        plan=Plan(**config.search.as_dict()),
        hidden=config.model.hidden,
        data=config.data.as_dict(),
        schedule=config.schedule.as_dict(),
        final=Final(**config.final.as_dict()),
        output=Path(output),
        storage=config.storage,
    ).run()
    return 0


def report(argv: list[str]) -> int:
    """``onelayer report``."""
    from onelayer.study.plan import Plan
    from onelayer.study.report import Report

    parser = Parser(
        prog="onelayer report", description="Repeat the exercises beside their published figures."
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file of options.")
    parser.add_argument("--output", type=str, default="docs/report", help="Folder of report.md.")
    parser.add_argument("--runs", type=str, default=f"{RUNS}/report", help="Folder of the runs.")
    parser.add_argument(
        "--seeds", type=list[int], default=list(range(10)), help="Of each training."
    )
    parser.add_class_arguments(Plan, "search")
    for name, kind, what in (
        ("root", str | None, "Folder of CIFAR-10; ONELAYER_DATA or data."),
        ("source", str, "cifar10, synthetic or auto."),
        ("limit", int | None, "Keep only so many images of each split: a quick look."),
    ):
        default = "cifar10" if name == "source" else None
        parser.add_argument(f"--data.{name}", type=kind, default=default, help=what)
    parser.add_argument("--step_size", type=int | None, help="n_s of every training: a quick look.")
    config = parser.parse_args(argv)
    data = {k: v for k, v in config.data.as_dict().items() if v is not None}
    short = {"step_size": config.step_size} if config.step_size else None
    path = Report(
        output=Path(config.output),
        runs=Path(config.runs),
        data=data,
        seeds=config.seeds,
        search=Plan(**config.search.as_dict()),
        schedule=short,
    ).write()
    print(f"report: {path}")
    return 0


def _read_run(path: str | Path) -> dict[str, Any]:
    """The content of a run's checkpoint.

    Raises:
        InputError: as :func:`read_checkpoint`, and for weights alone.
    """
    if Path(path).is_dir():
        raise InputError(f"the checkpoint {str(path)!r} is a folder: name the file {LAST} in it.")
    content = read_checkpoint(path)
    for key, kind in (("global_step", int), ("pytorch-lightning_version", str)):
        if not isinstance(content.get(key), kind):
            raise InputError(
                f"{path} is not a Lightning checkpoint: it has no {key}.\n"
                f"Name one that onelayer fit wrote, {RUNS}/<config>/version_N/checkpoints/{LAST}."
            )
    return content


def _remove(files: Iterable[Path], folders: Iterable[Path]) -> None:
    """Delete these files, then those folders that are empty."""
    for path in files:
        if not path.is_dir():
            path.unlink(missing_ok=True)
    for folder in folders:
        with suppress(OSError):  # somebody else's files are in it
            folder.rmdir()


@contextmanager
def _signals() -> Iterator[None]:
    """Undo that Lightning makes exits of signals: SIGTERM's would tell of success."""
    try:
        yield
    except SIGTERMException:
        raise Terminated from None
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _interrupted(folder: Path | None) -> Iterator[None]:
    """Turn Ctrl+C and SIGTERM into Stopped where a checkpoint is there."""
    try:
        with _signals():
            yield
    except KeyboardInterrupt as interrupt:
        last = last_of(folder) if folder else None
        if last is None or not last.is_file():
            raise
        step = read_checkpoint(last)["global_step"]
        raise Stopped(getattr(interrupt, "signum", signal.SIGINT), step, str(last)) from None


def _stem(configs: list[Any] | None) -> str:
    """A name for runs of these configuration files."""
    return "+".join(Path(str(path)).stem for path in configs or [])


class SaveConfig(SaveConfigCallback):
    """Saves config.yaml in the folder that holds the run's checkpoints, whatever the logger."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file; nothing without a logger."""
        if folder := run_folder(trainer):
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, folder / self.config_filename, skip_none=False, overwrite=True
            )


class OneLayerCLI(LightningCLI):
    """``onelayer fit | validate | test | predict``."""

    def __init__(self, argv: list[str]) -> None:
        self.results = Results()
        self._argv = argv
        self._resumed_run: Path | None = None
        self._resumed_step = -1
        super().__init__(
            OneLayer,
            CIFAR10DataModule,
            args=argv,
            parser_class=Parser,
            trainer_defaults={
                "accelerator": accelerator(),
                "devices": 1,  # Lightning would take every GPU there is
                "callbacks": [self.results],
                "enable_model_summary": False,
            },
            seed_everything_default=False,  # every random choice has its own seed
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # hyperparameters are plain values already
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that was typed: every other's parser would cost half a second."""
        return {k: v for k, v in LightningCLI.subcommands().items() if k == self._argv[0]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The callbacks that a config sets by name."""
        parser.add_lightning_class_args(TriangularLR, "schedule")
        parser.add_lightning_class_args(Curves, "curves")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse ``args`` as if typed, without LightningCLI's warning about sys.argv."""
        self.config = parser.parse_args(args)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # the figures are printed once, by us
        if subcommand == "predict":
            parser.add_argument(
                "--output", type=str, default="predictions.csv", help="CSV file to write."
            )
        return parser

    def _parse_ckpt_path(self) -> None:
        """Lightning's would let a checkpoint's hyperparameters override what was typed."""

    def before_instantiate_classes(self) -> None:
        """What follows from several options together."""
        config = self.config[self.config.subcommand]
        if self.config.subcommand == "fit":
            trainer, schedule = config.trainer, config.schedule
            if trainer.max_steps == -1 and trainer.max_epochs is None and not trainer.max_time:
                trainer.max_steps = 2 * schedule.step_size * schedule.cycles
            if config.ckpt_path is not None:
                self._resume_from(find_checkpoint(config.ckpt_path, self._runs_folder()))
        elif config.ckpt_path is None:
            raise InputError(
                f"onelayer {self.config.subcommand} needs --ckpt_path: the checkpoint of a run, "
                f"{RUNS}/<config>/version_N/checkpoints/{LAST}."
            )
        else:
            self._take_network_from(_read_run(config.ckpt_path), config.ckpt_path)

    def _resume_from(self, path: Path) -> None:
        """Go on in the run's own folder; its TensorBoard curves are cut at the checkpoint.

        A checkpoint that lies elsewhere starts a new one.
        """
        self._resumed_step = _read_run(path)["global_step"]
        folder = path.resolve().parent
        self._resumed_run = folder.parent if folder.name == FOLDER else None
        print(f"resuming {path} after {self._resumed_step} updates")
        self.config[self.config.subcommand]["ckpt_path"] = str(path)

    def _take_network_from(self, checkpoint: dict[str, Any], path: str) -> None:
        """The checkpoint's network, which what was typed must agree with, and its splits.

        A split that was typed counts: somebody may well want to know the figures of another.
        """
        given = self.parser.parse_args(self._argv, defaults=False).get(self.config.subcommand, {})
        config = self.config[self.config.subcommand]
        model = given.get("model", None) or {}
        for key, value in checkpoint.get("hyper_parameters", {}).items():
            if key.startswith("_"):
                continue
            if model.get(key, value) != value:
                raise InputError(
                    f"model.{key} is {model.get(key)!r} here but {value!r} in {path}: leave it out."
                )
            config["model"][key] = value
        typed = given.get("data", None) or {}
        saved = checkpoint.get(CIFAR10DataModule.__qualname__, {}).get("arguments", {})
        if not any(key in typed for key in SPLIT):
            for key in SPLIT:
                config["data"][key] = saved.get(key, config["data"].get(key))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Our logger where nothing else was asked for."""
        asked = self._get(self.config_init, "trainer")
        goes_on = self._resumed_run is not None and asked.logger in (None, True)
        if self.subcommand != "fit" or goes_on or asked.logger is False:
            self.save_config_callback = None  # a resumed run has its own, one without logger none
        if self.subcommand != "fit":
            kwargs["logger"] = asked.logger or False
        elif asked.logger in (None, True) and not asked.barebones:
            kwargs["logger"] = self._tensorboard()
        plugins = asked.plugins or []
        kwargs["plugins"] = [
            *(plugins if isinstance(plugins, list) else [plugins]),
            AtomicCheckpointIO(),
        ]
        if "spawn" in str(asked.strategy) or "fork" in str(asked.strategy):
            raise InputError(
                f"trainer.strategy {asked.strategy} would leave the figures in processes that end "
                "with the training: use ddp."
            )
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Without Checkpoints where they are switched off, or no run's folder is there for them."""
        off = config["barebones"] or config["enable_checkpointing"] is False
        homeless = (
            config["logger"] is False and self._get(self.config, "checkpoints").dirpath is None
        )
        if off or homeless:
            callbacks = [c for c in callbacks if not isinstance(c, Checkpoints)]
            asked = config["callbacks"] if isinstance(config["callbacks"], list) else []
            if not any(isinstance(callback, Checkpoint) for callback in asked):
                config["enable_checkpointing"] = False
        return super()._instantiate_trainer(config, callbacks)

    def instantiate_classes(self) -> None:
        """Make trainer, network and data.

        Raises:
            InputError: if the arguments of a class do not fit it, in ways that no type tells.
        """
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except (TypeError, ValueError, ArgumentError) as error:
            raise InputError(_shorten(str(error))) from error

    def _tensorboard(self) -> TensorBoardLogger:
        if self._resumed_run is None:
            folder = self._runs_folder()
            return TensorBoardLogger(folder.parent, name=folder.name, default_hp_metric=False)
        return TensorBoardLogger(
            self._resumed_run.parent,
            name="",
            version=self._resumed_run.name,
            default_hp_metric=False,
            purge_step=self._resumed_step + 1,
        )

    def _runs_folder(self) -> Path:
        """Where the versions of this configuration lie: lightning_logs/<config name>."""
        name = _stem(self._get(self.config, "config")) or "fit"
        root = self._get(self.config, "trainer").default_root_dir or "."
        return Path(str(root)) / RUNS / name

    def fit(self, **kwargs: Any) -> None:
        """Train; what is refused before the first update leaves nothing behind."""
        folder = None
        if self.trainer.is_global_zero:
            self.datamodule.verify_test()
            if isinstance(self.trainer.logger, TensorBoardLogger):  # others know it later
                folder = run_folder(self.trainer)
        if folder is None:
            return self.trainer.fit(**kwargs)
        there = set(folder.glob("*"))
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            with _interrupted(folder):
                self.trainer.fit(**kwargs)
        except Exception as error:
            if not isinstance(error, Stopped) and self.trainer.global_step <= max(
                self._resumed_step, 0
            ):
                _remove(set(folder.glob("*")) - there, made)
            raise

    def after_fit(self) -> None:
        """The test figures, once, and everything a run leaves."""
        from onelayer.study.plots import plot_curves

        if self.results.finished:
            print("the run is finished: nothing was left to do.")
        else:
            with _interrupted(run_folder(self.trainer)):
                self.trainer.test(self.model, self.datamodule, verbose=False)
        summary = self.results.summary
        if summary is None or not self.trainer.is_global_zero:
            return
        print(f"\n{format_summary(summary)}")
        if folder := run_folder(self.trainer):
            plot_curves(folder / "curves.csv", folder / "curves.png", dataset=summary["dataset"])
            print(f"run: {folder} (curves.png, curves.csv, summary.json, checkpoints/)")
        if summary["dataset"] == "synthetic":
            print("these figures are of the built-in synthetic images, not of CIFAR-10.")

    def after_validate(self) -> None:
        """Print the figures."""
        self._print_figures()

    def after_test(self) -> None:
        """Print the figures."""
        self._print_figures()

    def _print_figures(self) -> None:
        if self.trainer.is_global_zero:
            for name, value in self.trainer.callback_metrics.items():
                print(f"{name}: {float(value):.4f}")

    def predict(self, **kwargs: Any) -> None:
        """Write the CSV of predictions."""
        output = Path(self._get(self.config, "output"))
        if output.is_dir() or not output.parent.is_dir():
            what = "is a folder" if output.is_dir() else f"needs the folder {output.parent}"
            raise InputError(f"--output {output} {what}: name a CSV file to write.")
        if self.trainer.world_size > 1:
            raise InputError("predict works in one process: leave out trainer.devices.")
        batches = self.trainer.predict(**kwargs) or []
        names = self.datamodule.class_names
        with output.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "class", "probability", *names])
            for files, P in batches:
                for path, p in zip(files, P, strict=True):
                    best = int(p.argmax())
                    writer.writerow([path, names[best], float(p[best]), *map(float, p)])
        print(f"{sum(len(files) for files, _ in batches)} images: {output}")

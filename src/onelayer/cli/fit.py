"""``onelayer fit | validate | test | predict``: LightningCLI with our pieces."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from onelayer.cli.callbacks import refuse_doubles, refuse_unknown_monitors
from onelayer.cli.data_options import (
    class_of,
    complete,
    config_beside,
    config_of,
    content_of,
    names_a_class,
    typed_class,
    words_for,
)
from onelayer.cli.faults import interrupted
from onelayer.cli.parser import Parser, names_of, ours_first, shorten
from onelayer.core.checks import check_same
from onelayer.core.errors import InputError, first_line
from onelayer.data.adapter import count_batches, has_split, name_of, sizes
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.features import Statistics
from onelayer.data.resident import ResidentDataModule
from onelayer.study.data_settings import make_data
from onelayer.study.plots import PlotCurves
from onelayer.training.checkpoint import (
    AtomicCheckpointIO,
    find_checkpoint,
    network_of,
    read_run,
)
from onelayer.training.curves import Curves
from onelayer.training.files import named
from onelayer.training.folder import FOLDER, run_folder
from onelayer.training.interrupt import Stopped
from onelayer.training.metrics import ensembles_of
from onelayer.training.module import OneLayer
from onelayer.training.observer import callbacks_of
from onelayer.training.optimality import format_gaps
from onelayer.training.predictions import PredictionsCSV
from onelayer.training.results import Results, members_with
from onelayer.training.saving import Checkpoints, Snapshots
from onelayer.training.schedule import STEP_SIZE, TriangularLR, step_size_for
from onelayer.training.summary import format_report, format_split, format_summary, network_name
from onelayer.training.trainer import (
    claim_version,
    progress_lines,
    run_logger,
    trainer_defaults,
)

RUNS = "lightning_logs"
SYNTHETIC = "these figures are of the built-in synthetic images, not of CIFAR-10."
SPLIT = ("train_batches", "val_batches", "val_size", "limit")
"""The options of data that say which images a split has."""
ENDS = (("schedule", "cycles"), ("trainer", "max_steps"), ("trainer", "max_epochs"))
"""The options that say where a run ends, with their sections."""


class SaveConfig(SaveConfigCallback):
    """Saves config.yaml in the folder that holds the run's checkpoints, whatever the logger.

    Args:
        later: save when training starts, not before: a run that goes on has a config.yaml already,
            which stays where the run is refused.
        others: arguments of SaveConfigCallback.
    """

    def __init__(self, *args: Any, later: bool = False, **others: Any) -> None:
        super().__init__(*args, **others)
        self.later = later

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save before the first update of a new run."""
        if not self.later:
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the changed end of a run that goes on."""
        if self.later and trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file; nothing without a logger."""
        if folder := run_folder(trainer):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / self.config_filename
            config = self.config.clone()
            config["ckpt_path"] = None  # a config is of the whole run
            with named(path):
                self.parser.save(config, path, skip_none=False, overwrite=True)


def with_own_config(argv: list[str]) -> list[str]:
    """The words of ``fit``, with the config.yaml of the run to resume.

    Not where a config is typed, or a logger, which says where its runs are.
    """
    words = [part for word in argv for part in word.split("=", 1)]
    if "--config" in words or "--ckpt_path" not in words[:-1] or "--trainer.logger" in words:
        return argv
    typed = words[words.index("--ckpt_path") + 1]
    with suppress(InputError):  # which is raised again where the checkpoint is read
        path = find_checkpoint(typed, Path(RUNS), any_config=True)
        config = path.parent.parent / "config.yaml"
        if path.parent.name == FOLDER and config.is_file():
            own = config_of(config, typed_class(argv))
            return ["--config", own, *argv, "--ckpt_path", str(path)]
    return argv


def _with_data_of_checkpoint(argv: list[str]) -> list[str]:
    """The words of a subcommand that takes a checkpoint, with the data that it was trained on."""
    words = [part for word in argv for part in word.split("=", 1)]
    if argv[0] == "fit" or names_a_class(argv[1:]) or "--ckpt_path" not in words[:-1]:
        return argv
    typed = words[words.index("--ckpt_path") + 1]
    configs = [value for word, value in pairwise(words) if word == "--config"]
    runs = Path(RUNS, names_of(configs)) if configs else Path(RUNS)
    with suppress(NoCheckpointError):  # which is refused again where options are known
        path, content = _read(typed, runs, not configs)
        return [argv[0], *words_for(content, path), *argv[1:]]
    return argv


def _with_place_of_logger(argv: list[str]) -> list[str]:
    """The words with what a logger's bare name leaves open: where its runs lie."""
    words = [part for word in argv for part in word.split("=", 1)]
    given = dict(pairwise(words))
    kind = given.get("--trainer.logger", "").rpartition(".")[2]
    configs = [value for word, value in pairwise(words) if word == "--config"]
    usual = {}
    if kind in ("CSVLogger", "TensorBoardLogger"):
        root = Path(given.get("--trainer.default_root_dir", "."))
        usual = {"save_dir": str(root / RUNS), "name": names_of(configs) or argv[0]}
    elif kind == "MLFlowLogger" and not os.environ.get("MLFLOW_TRACKING_URI"):
        usual = {"tracking_uri": "sqlite:///mlflow.db"}  # MLflow gives up its folders of files
    options = {f"--trainer.logger.{name}": value for name, value in usual.items()}
    if not usual or (kind != "MLFlowLogger" and "--trainer.logger.save_dir" in given):
        return argv
    at = max(i for i, word in enumerate(argv) if word.partition("=")[0] == "--trainer.logger")
    at += 1 if "=" in argv[at] else 2
    own = [part for name, value in options.items() if name not in given for part in (name, value)]
    return [*argv[:at], *own, *argv[at:]]


class NoCheckpointError(Exception):
    """There is none to read before the options are parsed."""


def _read(typed: str, runs: Path, any_config: bool) -> tuple[Path, dict[str, Any]]:
    try:
        path = find_checkpoint(typed, runs, any_config)
        return path, read_run(path)
    except InputError as error:
        raise NoCheckpointError from error


class OneLayerCLI(LightningCLI):
    """LightningCLI over OneLayer and CIFAR10DataModule, or the data module that --data names."""

    def __init__(self, argv: list[str], images: Sequence[str] = ()) -> None:
        argv = _with_place_of_logger(_with_data_of_checkpoint(argv))
        self._argv, self._images = argv, list(images)
        self._any_data = names_a_class(argv)
        self.exit_code = 0
        self._resumed_run: Path | None = None
        self._resumed_step = -1
        self._extended = False
        self._ends_with_cycles = False
        super().__init__(
            OneLayer,
            LightningDataModule if self._any_data else CIFAR10DataModule,
            subclass_mode_data=self._any_data,
            args=argv,
            parser_class=Parser,
            trainer_defaults={
                **trainer_defaults(),
                "callbacks": [PlotCurves()],
            },
            seed_everything_default=False,  # every random choice has its own seed
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # hyperparameters are plain values already
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
        )

    # ---- options

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that was typed: every other's parser would cost half a second."""
        return {k: v for k, v in LightningCLI.subcommands().items() if k == self._argv[0]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The callbacks that a config sets by name."""
        parser.add_lightning_class_args(TriangularLR, "schedule")
        parser.add_lightning_class_args(Curves, "curves")
        parser.add_lightning_class_args(Snapshots, "snapshots")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.set_defaults({"snapshots.last": 0})
        parser.add_lightning_class_args(Results, "test")
        groups: Any = parser.groups
        groups.pop("test")  # Trainer.test's own arguments want the name, too

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse ``args`` as if typed, without LightningCLI's warning about sys.argv."""
        self.config = parser.parse_args(args)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.data_of_a_class = self._any_data  # type: ignore[attr-defined]
        if self._any_data:  # the data say them
            parser.set_defaults({"model.inputs": None, "model.classes": None})
        parser.data_class = class_of(self._argv)  # type: ignore[attr-defined]
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # the figures are printed once, by us
        if subcommand == "test":
            parser.add_argument(
                "--output", type=str | None, help="Folder to write test.json and test.png to."
            )
        if subcommand == "predict":
            parser.add_argument(
                "--output",
                type=str,
                default="predictions.csv",
                help="CSV or .parquet to write.",
            )
            parser.add_argument(
                "--member",
                type=int | Literal["best", "all"],
                default="best",
                help="Which networks answer: best, the mean of those of the λ best on validation; "
                "all, the mean of all; or the number of one.",
            )
        ours_first(parser)
        parser.usage = f"onelayer {subcommand} [-c CONFIG] [options]"
        return parser

    def _parse_ckpt_path(self) -> None:
        """Lightning's would let a checkpoint's hyperparameters override what was typed."""

    def before_instantiate_classes(self) -> None:
        """What follows from several options together."""
        config = self.config[self.config.subcommand]
        fits = self.config.subcommand == "fit"
        if self.config.subcommand == "test" and config.output is not None:
            config.test.folder = config.output
        if self._images:
            (config.data.init_args if self._any_data else config.data).images = self._images
        if fits:
            trainer, schedule = config.trainer, config.schedule
            self._let_typed_ends_count(trainer, schedule)
            if schedule.step_size is None and not self._any_data:
                schedule.step_size = STEP_SIZE
            if trainer.max_steps == -1 and trainer.max_epochs is None and not trainer.max_time:
                self._end_with_cycles()
        if config.ckpt_path is not None:
            runs, any_config = self._logger_folder(), False
            if runs is None:
                runs, any_config = self._runs_folder(), not config.config
                runs = runs.parent if any_config else runs
            path = find_checkpoint(config.ckpt_path, runs, any_config)
            config["ckpt_path"] = str(path)
            self._resume_from(path) if fits else self._take_network_from(path)
        elif not fits:
            raise InputError(
                f"onelayer {self.config.subcommand} needs --ckpt_path: a run's folder, "
                f"{RUNS}/<config>/version_N, or last for the newest."
            )

    def _end_with_cycles(self) -> None:
        """Stop after the schedule's cycles, as soon as their length is known."""
        config = self.config[self.config.subcommand]
        known = config.schedule.step_size is not None
        self._ends_with_cycles = not known
        if known:
            config.trainer.max_steps = 2 * config.schedule.step_size * config.schedule.cycles

    def _let_typed_ends_count(self, trainer: Namespace, schedule: Namespace) -> None:
        """Let an end given on the command line replace the one in the config of a resumed run."""
        given = {word.partition("=")[0] for word in self._argv}
        steps, epochs = "--trainer.max_steps" in given, "--trainer.max_epochs" in given
        cycles = "--schedule.cycles" in given and not (steps or epochs)
        if "--ckpt_path" not in given or not (steps or epochs or cycles):
            return
        if not steps:
            trainer.max_steps = -1
            if cycles:
                self._end_with_cycles()
        if not epochs:
            trainer.max_epochs = None
        if "--trainer.max_time" not in given:
            trainer.max_time = None

    def _say_what_changes(self, path: Path) -> bool:
        """Print how the end of a run differs from that in its config.yaml; whether it does."""
        config, before = self.config[self.config.subcommand], content_of(config_beside(path))
        for section, name in ENDS:  # the first that differs: max_steps follows from cycles
            old, new = (before.get(section) or {}).get(name), config[section][name]
            if before and old != new and new not in (None, -1):
                break
        else:
            return False
        step, end = self._resumed_step, config.trainer.max_steps
        if end == -1 or end > step:
            to = f"update {end}" if end != -1 else f"the end of epoch {new}"
            was = "" if old in (None, -1) else f"{old} -> "
            print(f"{name}: {was}{new}, so the run goes on from update {step} to {to}")
        return True

    def _resume_from(self, path: Path) -> None:
        """Go on in the run's own folder; its TensorBoard curves are cut at the checkpoint.

        A checkpoint that lies elsewhere starts a new one.
        """
        content = read_run(path)
        network_of(content, path)  # refuses now what Lightning would trip over later
        self._resumed_step = content["global_step"]
        folder = path.resolve().parent
        self._resumed_run = folder.parent if folder.name == FOLDER else None
        print(f"resuming {path} after {self._resumed_step} updates")
        self._extended = self._say_what_changes(path)

    def _take_network_from(self, path: Path) -> None:
        """The checkpoint's network, which what was typed must agree with, and its splits.

        A split that was typed counts: somebody may well want to know the figures of another.
        """
        print(f"checkpoint: {path}")
        given = self.parser.parse_args(self._argv, defaults=False).get(self.config.subcommand, {})
        config = self.config[self.config.subcommand]
        model = given.get("model", None) or {}
        content = read_run(path)
        network = network_of(content, path)
        there = dict(network.hparams)
        here = {key: model.get(key, value) for key, value in there.items()}
        check_same(str(path), here, there, "Leave it out.", section="model")
        for key, value in there.items():
            config["model"][key] = value
        typed = given.get("data", None) or {}
        if self._any_data:
            complete(config.data, typed, content, path, str(self.config.subcommand))
            return
        state = content.get(CIFAR10DataModule.__qualname__)
        if not isinstance(state, dict) or not isinstance(saved := state.get("arguments"), dict):
            raise InputError(f"{path} has no data's state: name one that onelayer fit wrote.")
        if not Statistics(network.mean, network.std).equal(
            Statistics(state.get("mean"), state.get("std"))  # type: ignore[arg-type]
        ):
            raise InputError(f"{path}: its network and its data have other statistics: damaged.")
        if "source" not in typed:
            config["data"]["source"] = state.get("dataset")
        if not any(key in typed for key in SPLIT):
            for key in SPLIT:
                config["data"][key] = saved.get(key, config["data"].get(key))

    # ---- the pieces

    def instantiate_classes(self) -> None:
        """Make trainer, network and data.

        Raises:
            InputError: if the arguments of a class do not fit it, in ways that no type tells.
        """
        self._refuse_val_size()
        try:
            if self._any_data:
                self._instantiate_data_first()
            else:
                super().instantiate_classes()
        except InputError:
            raise
        except (TypeError, ValueError, ArgumentError) as error:
            raise InputError(shorten(str(error))) from error
        self._refuse_without_effect()

    def _refuse_val_size(self) -> None:
        """Refuse data.val_size on the command line where other data validate."""
        config = self.config[str(self.subcommand)]
        data = config.data.init_args if self._any_data else config.data
        for name in ("val", "val_batches"):
            given = (data or {}).get(name)
            if given is not None and self._types("--data.val_size"):
                raise InputError(
                    f"--data.val_size has no effect: data.{name} is {given}, which validates.\n"
                    f"Leave it out, or set --data.{name} null."
                )

    def _types(self, option: str) -> bool:
        return option in {word.partition("=")[0] for word in self._argv}

    def _refuse_without_effect(self) -> None:
        """Refuse options on the command line that others overrule; warn of a general seed.

        Raises:
            InputError: naming both.
        """
        config = self.config[str(self.subcommand)]
        if self.subcommand == "fit" and self._types("--model.lr"):
            raise InputError(
                "--model.lr has no effect: the schedule sets the rate of every update, up to "
                f"schedule.max_lr, which is {config.schedule.max_lr:g}.\nSet --schedule.max_lr."
            )
        ours = isinstance(self.datamodule, ResidentDataModule)
        if self.subcommand == "fit" and ours and config.seed_everything not in (None, False):
            warnings.warn(
                "seed_everything changes neither the weights nor the batches: their seeds are "
                "model.seeds and data.seed.",
                stacklevel=2,
            )

    def _instantiate_data_first(self) -> None:
        """As LightningCLI, but that d and k are those of the data where they were not typed."""
        command = str(self.subcommand)
        self.datamodule = make_data(self.config[command].data.as_dict())
        if command == "fit":
            self._fill_sizes(self.config[command].model)
            schedule = self.config[command].schedule
            if schedule.step_size is None:
                schedule.step_size = step_size_for(count_batches(self.datamodule), schedule.cycles)
            if self._ends_with_cycles:
                self._end_with_cycles()
        others = self.config.clone()
        del others[command]["data"]
        self.config_init = self.parser.instantiate_classes(others)
        self.model = self._get(self.config_init, "model")
        self.trainer = self.instantiate_trainer()

    def _fill_sizes(self, model: Namespace) -> None:
        missing = [name for name in ("inputs", "classes") if model[name] is None]
        if missing:
            found = dict(zip(("inputs", "classes"), sizes(self.datamodule), strict=True))
            for name in missing:
                model[name] = found[name]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Our logger where nothing else was asked for.

        Raises:
            InputError: for a strategy whose processes end with the training.
        """
        asked = self._get(self.config_init, "trainer")
        kwargs["logger"], goes_on = self._logger(asked)
        own = goes_on and not self._extended  # a resumed run has its own config.yaml
        if self.subcommand != "fit" or own or asked.logger is False:
            self.save_config_callback = None
        self.save_config_kwargs["later"] = goes_on
        plugins = asked.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if any(word in str(asked.strategy) for word in ("spawn", "fork")):
            raise InputError(
                f"trainer.strategy {asked.strategy} would leave the figures in processes that end "
                "with the training: use ddp."
            )
        try:
            return super().instantiate_trainer(**kwargs)
        except RuntimeError as error:  # of Lightning, of devices, SLURM and the like
            if "SLURM_NTASKS" not in os.environ:
                raise InputError(f"trainer: {first_line(error)}") from error
            raise InputError(
                f"trainer: {first_line(error)}\nTo train in this process alone, unset SLURM_NTASKS."
            ) from error

    def _logger(self, asked: Any) -> tuple[Any, bool]:
        """The logger, and whether it goes on in the folder of the run that is resumed."""
        run = self._resumed_run
        if self.subcommand != "fit":
            return asked.logger or False, False
        if asked.logger in (None, True) and not asked.barebones:
            return run_logger(run, self._runs_folder(), self._resumed_step), run is not None
        return asked.logger, False

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Without Checkpoints where they are switched off, or no run's folder is there for them."""
        asked = config["callbacks"] if isinstance(config["callbacks"], list) else []
        refuse_doubles(callbacks, asked)
        checkpoints = self._get(self.config, "checkpoints")
        homeless = config["logger"] is False and checkpoints.dirpath is None
        if homeless or config["barebones"] or config["enable_checkpointing"] is False:
            callbacks = [c for c in callbacks if not isinstance(c, Checkpoints)]
            if not any(isinstance(callback, Checkpoint) for callback in asked):
                config["enable_checkpointing"] = False
        lines = progress_lines(asked, config)
        return super()._instantiate_trainer(config, [*callbacks, *lines])

    def _runs_folder(self) -> Path:
        """Where the versions of this configuration lie: lightning_logs/<config name>."""
        name = names_of(self._get(self.config, "config")) or "fit"
        root = self._get(self.config, "trainer").default_root_dir or "."
        return Path(str(root)) / RUNS / name

    def _logger_folder(self) -> Path | None:
        """Where the versions lie of a logger that was typed, if it has versions in a folder."""
        logger = self._get(self.config, "trainer").logger
        if not isinstance(logger, Namespace):
            return None
        given = logger.init_args
        if logger.class_path.rpartition(".")[2] not in ("CSVLogger", "TensorBoardLogger"):
            return None
        return Path(given.save_dir, given.get("name") or "")

    # ---- the work

    def fit(self, **kwargs: Any) -> None:
        """Train; what is refused before the first update leaves nothing behind."""
        splits = ("train", "val") if has_split(self.datamodule, "val") else ("train",)
        refuse_unknown_monitors(callbacks_of(self.trainer), splits)
        if not self.trainer.is_global_zero:
            self.trainer.fit(**kwargs)
            return
        if verify := getattr(self.datamodule, "verify_test", None):
            verify()
        with self._nothing_left():
            folder = run_folder(self.trainer)
            with interrupted(folder):
                self.trainer.fit(**kwargs)

    @contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """Take a folder for the run; empty it of a training refused before its first update.

        W&B and the like know their folder later, and clean up by themselves.
        """
        logger = self.trainer.logger
        if not isinstance(logger, TensorBoardLogger | CSVLogger):
            yield
            return
        above = Path(logger.root_dir)
        made = [path for path in (above, *above.parents) if not path.exists()]
        claimed = claim_version(logger)
        folder = Path(logger.log_dir)
        there = set(folder.rglob("*"))
        try:
            yield
        except Exception as error:
            trained = self.trainer.global_step > max(self._resumed_step, 0)
            if not trained and not isinstance(error, Stopped):
                new = sorted(set(folder.rglob("*")) - there, reverse=True)  # insides first
                for path in new:
                    if not path.is_dir():
                        path.unlink(missing_ok=True)
                directories = filter(Path.is_dir, new)
                for path in [*directories, *([folder] if claimed else []), *made]:
                    with suppress(OSError):  # somebody else's files are in it
                        path.rmdir()
            raise

    def after_fit(self) -> None:
        """The test figures, once, and everything a run leaves."""
        results: Results = self._get(self.config_init, "test")
        if results.finished:
            print("the run is finished: nothing was left to do.")
        elif has_split(self.datamodule, "test"):
            with interrupted(run_folder(self.trainer)):
                self.trainer.test(self.model, self.datamodule, verbose=False)
        summary = results.summary
        if summary is None or not self.trainer.is_global_zero:
            return
        print(f"\n{format_summary(summary)}")
        if folder := run_folder(self.trainer):
            print(f"run: {folder} (curves.png, curves.csv, summary.json, test.json, checkpoints/)")
        if summary["dataset"] == "synthetic":
            print(SYNTHETIC)

    def after_validate(self) -> None:
        """Print the figures of the validation split."""
        self._print_figures("val")

    def after_test(self) -> None:
        """Print the figures of the test split."""
        self._print_figures("test")
        report = self._get(self.config_init, "test").report
        if report and self.trainer.is_global_zero:
            print(f"\n{format_report(report)}")

    def _print_figures(self, split: str) -> None:
        module, dataset = self.model, name_of(self.datamodule)
        figures = module.figures(module.measured)  # of all processes
        ensembles = ensembles_of(module, split)
        if not self.trainer.is_global_zero:
            return
        what = {"val": "validation", "test": "test"}[split]
        print(f"{network_name(module.hidden)}, {dataset}, {what} split")
        print(format_split(members_with(module, split, figures), split, ensembles))
        if split == "test" and not module.hidden:
            print(format_gaps(module, self.datamodule))
        if dataset == "synthetic":
            print(SYNTHETIC)

    def predict(self, **kwargs: Any) -> None:
        """Write the CSV of predictions, and say which networks they are of."""
        if self.trainer.world_size > 1:
            raise InputError("predict works in one process: leave out trainer.devices.")
        self.model.member = self._get(self.config, "member")
        self.model.choose(self.model.member)  # refuses now what there is not
        writer = PredictionsCSV(Path(self._get(self.config, "output")))
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        self.trainer.predict(**{**kwargs, "return_predictions": False})
        words = self.model.choose(self.model.member).words
        what = "rows" if writer.rows and isinstance(writer.rows[0][0], int) else "images"
        print(f"{len(writer.rows)} {what}, classified by {words}: {writer.path}")
        loader = self.trainer.predict_dataloaders
        self.exit_code = int(getattr(loader, "unreadable", 0) > 0)

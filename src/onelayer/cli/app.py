"""``onelayer fit | validate | test | predict``: LightningCLI with our pieces."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from jsonargparse import ArgumentError
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from onelayer.cli import describe
from onelayer.cli.callbacks import refuse_doubles, refuse_unknown_monitors
from onelayer.cli.data_options import class_of, images_option, names_a_class
from onelayer.cli.folders import SaveConfig, check_output, own_folder, with_place_of_logger
from onelayer.cli.help import MEMBER, OUTPUT
from onelayer.cli.messages import interrupted
from onelayer.cli.parser import Parser, output_of, shorten, typed_options
from onelayer.cli.printing import print_run, print_split
from onelayer.cli.resuming import (
    Opened,
    Resumed,
    checkpoint_paths,
    replace_end,
    restore_data,
    resume,
    runs_folder,
    take_network,
    with_data_of_checkpoint,
)
from onelayer.cli.sections import SHARED
from onelayer.core.checks import at_home
from onelayer.core.cycles import STEP_SIZE
from onelayer.core.errors import InputError, first_line
from onelayer.data.adapter import has_split, verify
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.resident import ResidentDataModule
from onelayer.study.data_settings import make_data
from onelayer.study.figures import PlotCurves
from onelayer.study.run import with_length, with_sizes
from onelayer.training.checkpoint import AtomicCheckpointIO, read_run
from onelayer.training.files import write_json
from onelayer.training.folder import run_folder
from onelayer.training.module import OneLayer
from onelayer.training.observer import callbacks_of
from onelayer.training.predictions import PredictionsCSV
from onelayer.training.records import PLAIN_QUANTITIES, QUANTITIES
from onelayer.training.results import Results
from onelayer.training.saving import Checkpoints
from onelayer.training.summary import format_report
from onelayer.training.trainer import progress_lines, run_logger, trainer_defaults


class OneLayerCLI(LightningCLI):
    """LightningCLI over OneLayer and CIFAR10DataModule, or the data module that --data names.

    Args:
        argv: the command and its words.
        images: values of --data.images, if there are several.
    """

    def __init__(self, argv: list[str], images: Sequence[str] = ()) -> None:
        self.exit_code, self.resumed = 0, Resumed()
        self.network: OneLayer  # of the checkpoints to evaluate
        self.opened: Opened = {}  # checkpoints
        argv = with_place_of_logger(with_data_of_checkpoint(argv, self.opened))
        self._of_class = names_a_class(argv)  # refuses a class that there is not
        self._images_option = images_option(argv)
        if argv[0] == "predict":
            own = f"--data.{self._images_option}"
            argv = [re.sub(r"^--data\.images(?=$|=)", own, word) for word in argv]
        self._argv, self._images, self._typed = argv, list(images), typed_options(argv)
        super().__init__(
            OneLayer,
            LightningDataModule if self._of_class else CIFAR10DataModule,
            subclass_mode_data=self._of_class,
            args=argv,
            parser_class=Parser,
            trainer_defaults={**trainer_defaults(), "callbacks": [PlotCurves()]},
            seed_everything_default=False,  # every random choice has its own seed
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # hyperparameters are plain values already
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
        )

    # ---- options

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the given command only: every other parser would take half a second."""
        return {k: v for k, v in LightningCLI.subcommands().items() if k == self._argv[0]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that have a section; without a fit, only Results is of use."""
        for section, kind in SHARED.items():
            if issubclass(kind, Callback) and (kind is Results or self._argv[0] == "fit"):
                parser.add_lightning_class_args(kind, section)
        if self._argv[0] == "fit":
            parser.set_defaults({"snapshots.last": 0})
        groups: Any = parser.groups
        groups.pop("test")  # Trainer.test's own arguments have the same name

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse ``args``, without LightningCLI's warning about sys.argv."""
        self.config = parser.parse_args(args)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        assert isinstance(parser, Parser)
        parser.usage = f"onelayer {subcommand} [-c CONFIG] [options]"
        parser.description = describe(subcommand)
        parser.data_of_a_class, parser.data_class = self._of_class, class_of(self._argv)
        if self._of_class:  # the data decide
            parser.set_defaults({"model.inputs": None, "model.classes": None})
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # the results are printed once, by us
        if subcommand == "predict":
            parser.add_argument(
                "--output", type=str, default="predictions.csv", help=OUTPUT[subcommand]
            )
            parser.add_argument(
                "--member", type=int | Literal["best", "all"], default="best", help=MEMBER
            )
        else:
            parser.add_argument("--output", type=str | None, help=OUTPUT[subcommand])
        return parser

    def _parse_ckpt_path(self) -> None:
        """Skip Lightning's, which lets a checkpoint's hyperparameters override given options."""

    def before_instantiate_classes(self) -> None:
        """Apply options that follow from several others."""
        command = str(self.subcommand)
        config = self.config[command]
        if command == "test" and (folder := output_of(config)):
            config.test.folder = str(folder)
        if self._images:
            data = config.data.init_args if self._of_class else config.data
            data[self._images_option] = self._images
        paths = checkpoint_paths(config, command)
        self.opened = {path: self.opened.get(path) or read_run(path) for path in paths}
        if command == "fit" and paths:
            config["ckpt_path"] = str(paths[0])
            replace_end(config, self._typed)
        elif paths:
            config["ckpt_path"] = None  # the networks are made here, from what has been read
            given = self.parser.parse_args(self._argv, defaults=False).get(command, {})
            self.network = take_network(config, given, self.opened, command, self._of_class)

    # ---- the pieces

    def instantiate_classes(self) -> None:
        """Make data, network and trainer.

        Raises:
            InputError: for arguments that no class accepts, or that have no effect.
        """
        self._refuse_val_size()
        try:
            self._make_pieces()
        except InputError:
            raise
        except (TypeError, ValueError, ArgumentError) as error:
            raise InputError(shorten(str(error))) from error
        self._refuse_without_effect()

    def _make_pieces(self) -> None:
        command = str(self.subcommand)
        config, data = self.config[command], None
        if self._of_class:
            data = make_data(config.data.as_dict())
        if command == "fit":
            self._complete_fit(config, data)
        others = self.config.clone()
        if self._of_class:
            del others[command]["data"]
        if command != "fit":
            del others[command]["model"]
        self.config_init = self.parser.instantiate_classes(others)
        self.datamodule = data or self._get(self.config_init, "data")
        if command == "fit":
            self.model = self._get(self.config_init, "model")
        else:
            self.model = self.network
            restore_data(self.datamodule, next(iter(self.opened.values())))
        self.trainer = self.instantiate_trainer()

    def _complete_fit(self, config: Any, data: LightningDataModule | None) -> None:
        """Fill the options of ``fit`` that follow from data of a class, and the end of the run."""
        trainer, schedule = config.trainer, config.schedule
        if data is not None:
            for name, value in with_sizes(config.model.as_dict(), data).items():
                config.model[name] = value
            schedule.step_size = with_length(schedule.as_dict(), data)["step_size"]
        if schedule.step_size is None:
            schedule.step_size = STEP_SIZE
        if trainer.max_steps == -1 and trainer.max_epochs is None and not trainer.max_time:
            trainer.max_steps = 2 * schedule.step_size * schedule.cycles
        if config.ckpt_path is not None:
            self.resumed = resume(config, *next(iter(self.opened.items())))

    def _refuse_val_size(self) -> None:
        """Refuse data.val_size on the command line if other data validate."""
        config = self.config[str(self.subcommand)]
        data = config.data.init_args if self._of_class else config.data
        for name in ("val", "val_batches"):
            given = (data or {}).get(name)
            if given is not None and "--data.val_size" in self._typed:
                raise InputError(
                    f"--data.val_size has no effect: data.{name} is {given}, which validates.\n"
                    f"Leave it out, or set --data.{name} null."
                )

    def _refuse_without_effect(self) -> None:
        """Refuse options on the command line that others override; warn of a general seed."""
        config = self.config[str(self.subcommand)]
        if self.subcommand != "fit":
            return
        if "--model.lr" in self._typed:
            raise InputError(
                "--model.lr has no effect: the schedule sets the rate of every update, up to "
                f"schedule.max_lr, which is {config.schedule.max_lr:g}.\nSet --schedule.max_lr."
            )
        ours = isinstance(self.datamodule, ResidentDataModule)
        if ours and config.seed_everything not in (None, False):
            warnings.warn(
                "seed_everything changes neither the weights nor the batches: their seeds are "
                "model.seeds and data.seed.",
                stacklevel=2,
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with our logger if no other was given.

        Raises:
            InputError: for a strategy whose processes end with the run.
        """
        asked = self._get(self.config_init, "trainer")
        kwargs["logger"] = self._logger(asked)
        goes_on = self.resumed.folder is not None and kwargs["logger"] is not asked.logger
        own = goes_on and not self.resumed.extended  # a resumed run has its own config.yaml
        if self.subcommand != "fit" or own or asked.logger is False:
            self.save_config_callback = None
        self.save_config_kwargs["later"] = goes_on
        plugins = asked.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, AtomicCheckpointIO(opened=self.opened)]
        if any(word in str(asked.strategy) for word in ("spawn", "fork")):
            raise InputError(
                f"trainer.strategy {asked.strategy} would leave the results in processes that end "
                "with the run: use ddp."
            )
        try:
            return super().instantiate_trainer(**kwargs)
        except RuntimeError as error:  # Lightning's, about devices, SLURM and the like
            slurm = "SLURM_NTASKS" in os.environ
            remedy = "\nTo train in this process alone, unset SLURM_NTASKS." if slurm else ""
            raise InputError(f"trainer: {first_line(error)}{remedy}") from error

    def _logger(self, asked: Any) -> Any:
        """Return the given logger, or TensorBoard in the folder of the run."""
        if self.subcommand != "fit":
            return asked.logger or False
        if asked.logger in (None, True) and not asked.barebones:
            config = self.config[str(self.subcommand)]
            run = output_of(config) or self.resumed.folder
            return run_logger(run, runs_folder(config), self.resumed.step)
        return asked.logger

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Leave out Checkpoints if they are off, or if there is no folder for them."""
        asked = config["callbacks"] if isinstance(config["callbacks"], list) else []
        refuse_doubles(callbacks, asked)
        off = config["barebones"] or config["enable_checkpointing"] is False
        for ours in [c for c in callbacks if isinstance(c, Checkpoints)]:
            if off or (config["logger"] is False and ours.dirpath is None):
                callbacks.remove(ours)
        if not any(isinstance(callback, Checkpoint) for callback in [*callbacks, *asked]):
            config["enable_checkpointing"] = False
        lines = progress_lines(asked, config)
        return super()._instantiate_trainer(config, [*callbacks, *lines])

    # ---- the work

    def fit(self, **kwargs: Any) -> None:
        """Train."""
        splits = ("train", "val") if has_split(self.datamodule, "val") else ("train",)
        names = QUANTITIES if self.model.class_weight is not None else PLAIN_QUANTITIES
        refuse_unknown_monitors(callbacks_of(self.trainer), splits, names)
        if not self.trainer.is_global_zero:
            self.trainer.fit(**kwargs)
            return
        if output := output_of(self.config["fit"]):
            check_output(output, self.trainer, resumed=self.resumed.folder is not None)
        verify(self.datamodule)
        with own_folder(self.trainer, self.resumed.step), interrupted(run_folder(self.trainer)):
            self.trainer.fit(**kwargs)

    def after_fit(self) -> None:
        """Measure the test split, once, and print the results."""
        results: Results = self._get(self.config_init, "test")
        if results.finished:
            print("the run is finished: nothing was left to do.")
        elif has_split(self.datamodule, "test"):
            with interrupted(run_folder(self.trainer)):
                self.trainer.test(self.model, self.datamodule, verbose=False)
        if results.summary and self.trainer.is_global_zero:
            print_run(results.summary, run_folder(self.trainer))

    def after_validate(self) -> None:
        """Print the results of the validation split, and write validate.json."""
        summary = print_split(self.model, self.datamodule, "val", self.trainer.is_global_zero)
        if summary and (folder := output_of(self.config["validate"])):
            write_json(folder / "validate.json", summary)

    def after_test(self) -> None:
        """Print the results of the test split."""
        print_split(self.model, self.datamodule, "test", self.trainer.is_global_zero)
        report = self._get(self.config_init, "test").report
        if report and self.trainer.is_global_zero:
            print(f"\n{format_report(report)}")

    def predict(self, **kwargs: Any) -> None:
        """Write the CSV of predictions, and print which networks predicted."""
        if self.trainer.world_size > 1:
            raise InputError("predict works in one process: leave out trainer.devices.")
        self.model.member = self._get(self.config, "member")
        self.model.choose(self.model.member)  # refuses a network that does not exist
        writer = PredictionsCSV(at_home(self._get(self.config, "output")))
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        self.trainer.predict(**{**kwargs, "return_predictions": False})
        words = self.model.choose(self.model.member).words
        what = "rows" if writer.rows and isinstance(writer.rows[0][0], int) else "images"
        print(f"{len(writer.rows)} {what}, classified by {words}: {writer.path}")
        loader = self.trainer.predict_dataloaders
        self.exit_code = int(getattr(loader, "unreadable", 0) > 0)

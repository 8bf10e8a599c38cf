"""The folder of a run: its config.yaml, its place by the logger, its end if the run is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from onelayer.cli.parser import RUNS, names_of, typed_options
from onelayer.cli.resuming import configs_in
from onelayer.core.errors import InputError
from onelayer.training.files import named
from onelayer.training.folder import FOLDER, run_folder
from onelayer.training.interrupt import Stopped
from onelayer.training.trainer import claim_folder

RUN_FILES = (FOLDER, "config.yaml", "curves.csv", "summary.json", "test.json")
"""Files of a run that another run in the same folder would replace."""


class SaveConfig(SaveConfigCallback):
    """Saves config.yaml in the folder that holds the run's checkpoints, whatever the logger.

    Args:
        later: save when training starts, not before. A resumed run has a config.yaml already, which
            must stay if the run is refused.
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
        """Save the changed end of a resumed run."""
        if self.later and trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, if there is a logger."""
        if folder := run_folder(trainer):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / self.config_filename
            config = self.config.clone()
            config["ckpt_path"] = config["output"] = None  # it holds for any folder
            with named(path):
                self.parser.save(config, path, skip_none=False, overwrite=True)


def with_place_of_logger(argv: list[str]) -> list[str]:
    """Return the words, with the location of runs added for a logger given by name alone."""
    typed = typed_options(argv)
    kind = typed.get("--trainer.logger", "").rpartition(".")[2]
    usual = {}
    if kind in ("CSVLogger", "TensorBoardLogger"):
        if "--trainer.logger.save_dir" in typed:
            return argv
        root = Path(typed.get("--trainer.default_root_dir", "."))
        usual = {"save_dir": str(root / RUNS), "name": names_of(configs_in(argv)) or argv[0]}
    elif kind == "MLFlowLogger" and not os.environ.get("MLFLOW_TRACKING_URI"):
        usual = {"tracking_uri": "sqlite:///mlflow.db"}  # MLflow gives up its folders of files
    options = {f"--trainer.logger.{name}": value for name, value in usual.items()}
    return [*argv, *(f"{name}={value}" for name, value in options.items() if name not in typed)]


def check_output(output: Path, trainer: Trainer, resumed: bool) -> None:
    """Raise :class:`InputError` if a run cannot have the folder that --output names.

    Args:
        output: the folder.
        trainer: trainer with its loggers.
        resumed: whether the run in this folder is resumed.
    """
    folder = run_folder(trainer)
    if folder is None or folder.resolve() != output.resolve():
        where = "there is no folder of the run" if folder is None else f"the run is in {folder}"
        raise InputError(
            f"--output {output} has no effect: {where}, because of trainer.logger, barebones or "
            "fast_dev_run.\nLeave out one of them."
        )
    found = [name for name in RUN_FILES if (output / name).exists()]
    if found and not resumed:
        raise InputError(
            f"{output} has another run's {', '.join(found)}.\n"
            "Resume that run with --ckpt_path last, or use another folder, --output."
        )


@contextmanager
def own_folder(trainer: Trainer, resumed: int) -> Iterator[None]:
    """Make the folder of a new run; remove it if training is refused before the first update.

    Files of other processes stay. A version's folder belongs to the process that made it. From the
    folder of a resumed run only this process's event file goes, whose purge_step would hide the
    run's points.

    Args:
        trainer: trainer with a logger that is not yet used.
        resumed: updates of the checkpoint; -1 without one.
    """
    logger: Any = trainer.logger
    if not isinstance(logger, TensorBoardLogger | CSVLogger):
        yield
        return
    above, events = Path(logger.root_dir), f"*.tfevents.*.{os.getpid()}.*"
    made = [path for path in (above, *above.parents) if not path.exists()]
    claimed, folder = claim_folder(logger), Path(logger.log_dir)
    there = set(folder.rglob(events))
    try:
        yield
    except Exception as error:
        if trainer.global_step <= max(resumed, 0) and not isinstance(error, Stopped):
            for path in set(folder.rglob(events)) - there:
                path.unlink(missing_ok=True)
            if claimed:
                shutil.rmtree(folder, ignore_errors=True)
            for path in made:
                with suppress(OSError):  # another process has put files there
                    path.rmdir()
        raise

"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import signal
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from onelayer.core.checks import check_whole
from onelayer.core.errors import InputError, first_line
from onelayer.training.files import PARTIAL, atomic_write
from onelayer.training.folder import FOLDER, LAST, PREVIOUS, last_of
from onelayer.training.interrupt import Stopped, StopRequest
from onelayer.training.observer import Observer
from onelayer.training.population import Population
from onelayer.training.schema import check_content


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs and renames; reads only what is whole and harmless.

    Lightning's own writes to $TMPDIR and moves, which across filesystems is a copy that a kill or
    a full disk cuts short under the final name.

    Args:
        way_on: what to do after a full disk.
    """

    def __init__(self, way_on: str = "resume with --ckpt_path") -> None:
        super().__init__()
        self.way_on = way_on

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save; whatever happens, ``path`` is then the old file or the new one, whole."""
        content = io.BytesIO()  # torch's own errors while it writes to a full disk name no cause
        torch.save(checkpoint, content)
        try:
            atomic_write(path, content.getbuffer())
        except OSError as error:
            raise InputError(
                f"cannot write the checkpoint {path}: {error.strerror or error}.\n"
                f"{_what_is_left(Path(path))}Free or choose another place and {self.way_on}."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: Any = None
    ) -> dict[str, Any]:
        """Load with weights_only=True whatever the caller says: no pickled code is ever run."""
        content = read_checkpoint(path, map_location)
        if "pytorch-lightning_version" not in content:
            raise InputError(f"{path} says nothing of a version of Lightning: it did not write it.")
        return content


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's content, verified to be whole.

    Raises:
        InputError: for a URL, a missing, truncated, damaged or foreign file, or one with pickled
            code; nothing of it is executed.
    """
    path = _local(path)
    try:
        return _read(path, map_location)
    except InputError as error:
        raise InputError(f"{error}\n{_what_is_left(path)}".strip()) from error


def _read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not check the checksums
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled code or objects other than tensors and plain values: refused, "
            "nothing of it was run."
        ) from error
    except Exception as error:
        raise InputError(f"{path} is not a whole checkpoint: {first_line(error)}.") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{path} is not a Lightning checkpoint: it has no state_dict.")
    try:
        check_content(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return content


def find_checkpoint(path: str, runs: Path, any_config: bool = False) -> Path:
    """The checkpoint meant by ``path``: a file, a run's folder, or "last" for the newest run.

    A run that was killed before its first checkpoint has nothing to go on from and is passed over.

    Args:
        path: what was typed.
        runs: the folder of a config's runs, of which the highest version is the newest.
        any_config: ``runs`` has a folder for each config, and the run trained last is the newest.

    Raises:
        InputError: there is none.
    """
    if path != "last":
        place = _local(path)
        return last_of(place) if last_of(place).is_file() else place
    folders = runs.glob("*/version_*" if any_config else "version_*")
    versions = [run for run in folders if re.fullmatch(r"version_\d+", run.name)]
    found = [last_of(run) for run in versions if last_of(run).is_file()]
    if not found:
        raise InputError(f"there is no run with a checkpoint in {runs}: train one, onelayer fit.")
    if any_config:
        return max(found, key=lambda last: last.stat().st_mtime)
    return max(found, key=lambda last: int(last.parent.parent.name.removeprefix("version_")))


def read_run(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint that a training wrote.

    Raises:
        InputError: as :func:`read_checkpoint`, and for weights alone.
    """
    if Path(path).is_dir():
        raise InputError(f"there is no checkpoint in the folder {path}: name a run's, or a file.")
    content = read_checkpoint(path)
    for key, kind in (("global_step", int), ("pytorch-lightning_version", str)):
        if not isinstance(content.get(key), kind):
            raise InputError(
                f"{path} is not a Lightning checkpoint: it has no {key}.\n"
                f"Name one that onelayer fit wrote, lightning_logs/<config>/version_N/{FOLDER}/"
                f"{LAST}."
            )
    return content


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise InputError(f"checkpoints are not loaded from a URL: download {path} first.")
    return Path(path)


def _what_is_left(path: Path) -> str:
    """A line that offers the other checkpoint of the folder, if it is whole."""
    for name in (LAST, PREVIOUS):
        other = path.with_name(name)
        if other != path and other.is_file():
            with suppress(InputError):
                step = _read(other).get("global_step")
                return f"This one is whole: --ckpt_path {other} (after {step} updates).\n"
    return ""


class Checkpoints(Observer, ModelCheckpoint):
    """A ModelCheckpoint with other defaults: last.ckpt every so many updates, and the one before.

    Also at the end, and when SIGINT or SIGTERM ask the training to stop, which it does then, with
    :class:`~onelayer.training.interrupt.Stopped`. Networks that have all diverged are not saved:
    what was good before them stays. Files are whole or not there (:class:`AtomicCheckpointIO`).

    Args:
        every: updates between checkpoints.
        dirpath: folder of the checkpoints; ModelCheckpoint's, ``checkpoints/`` of the run.
    """

    def __init__(self, every: int = 1000, dirpath: str | None = None) -> None:
        check_whole("every", every, at_least=1)
        super().__init__(
            dirpath=dirpath,
            filename=Path(LAST).stem,
            enable_version_counter=False,
            every_n_train_steps=every,
        )
        self.every = every
        self._request = StopRequest()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write through AtomicCheckpointIO unless the user brought another plugin."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        with warnings.catch_warnings():  # a run that is resumed has checkpoints
            warnings.filterwarnings("ignore", message=".*exists and is not empty")
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sweep what a killed run left half-written; know the last checkpoint of a resumed run.

        Another run's, where the folder is not this run's own, stays: then this one's is last-v1.
        """
        folder, resumed = Path(self.dirpath or ""), trainer.ckpt_path
        if trainer.is_global_zero:
            for leftover in folder.glob(f"*{PARTIAL}"):
                leftover.unlink(missing_ok=True)
        if resumed and Path(resumed).resolve().parent == folder.resolve():
            self.filename = Path(resumed).stem.replace(Path(PREVIOUS).stem, Path(LAST).stem)
            self.best_model_path = self.last_model_path = str(folder / f"{self.filename}.ckpt")
        elif not self.best_model_path:
            stem, version = Path(LAST).stem, 0
            while (folder / f"{self.filename}.ckpt").exists():
                version += 1
                self.filename = f"{stem}-v{version}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a signal ends a block of updates, not the process."""
        super().on_train_start(trainer, pl_module)
        self._request.watch()
        if trainer.received_sigterm:  # a moment ago, when only Lightning listened
            self._request.signum = signal.SIGTERM

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due, or where a signal asks for it, and then stop."""
        if signum := self._asked_to_stop(trainer):
            self._save_now(trainer)
            raise Stopped(signum, trainer.global_step, self.best_model_path)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            # Now, not at the end: by then Lightning takes a begun epoch for done, and with more
            # max_steps would go on with the next one.
            self._save_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final networks."""
        self._save_now(trainer)
        self._request.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back, however the training ended."""
        self._request.release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        super().on_exception(trainer, pl_module, exception)
        self._request.release()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: where the files lie follows from the run, which may have been moved."""
        return {}

    def _asked_to_stop(self, trainer: Trainer) -> int:
        """The signal; of several processes any one's stops all, after the same update."""
        signum = self._request.signum
        if trainer.world_size == 1:
            return signum
        asked = trainer.strategy.reduce_boolean_decision(bool(signum), all=False)
        return signum or (signal.SIGTERM if asked else 0)

    def _save_now(self, trainer: Trainer) -> None:
        """Save unless it has been after this update."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Save as ModelCheckpoint does, keeping the checkpoint before; not what has diverged."""
        if not _has_finite_member(trainer.lightning_module):
            return
        for logger in trainer.loggers:
            logger.save()  # what came before the checkpoint is not logged again after it
        last = Path(filepath)
        if trainer.is_global_zero and last.is_file():
            _keep_as_previous(last)
        super()._save_checkpoint(trainer, filepath)
        self.last_model_path = filepath


def _has_finite_member(module: Any) -> bool:
    return not isinstance(module, Population) or bool(module.finite_members().any())


def _keep_as_previous(last: Path) -> None:
    """Give the file a second name; it keeps its own until the next one replaces it."""
    previous = last.with_name(last.name.replace(Path(LAST).stem, Path(PREVIOUS).stem))
    partial = previous.with_name(f"{previous.name}{PARTIAL}")
    try:
        partial.unlink(missing_ok=True)
        os.link(last, partial)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(last, partial)
    os.replace(partial, previous)

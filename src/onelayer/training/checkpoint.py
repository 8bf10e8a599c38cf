"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import signal
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from onelayer.core.checks import check_whole
from onelayer.core.errors import InputError, first_line
from onelayer.training.folder import run_folder
from onelayer.training.interrupt import Stopped, StopRequest

FOLDER = "checkpoints"
"""Of a run's folder."""
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
SUFFIX = ".partial"
"""Of files being written: what a kill leaves; swept when the next run starts in the folder."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs and renames; reads only what is whole and harmless.

    Lightning's own writes to $TMPDIR and moves, which across filesystems is a copy that a kill or
    a full disk cuts short under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save; whatever happens, ``path`` is then the old file or the new one, whole."""
        path = Path(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}{SUFFIX}")
        content = io.BytesIO()  # torch's own errors while it writes to a full disk name no cause
        torch.save(checkpoint, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync_folder(path.parent)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise InputError(
                f"cannot write the checkpoint {path}: {error.strerror or error}.\n"
                f"{_what_is_left(path)}Free or choose another place and resume with --ckpt_path."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: Any = None
    ) -> dict[str, Any]:
        """Load with weights_only=True whatever the caller says: no pickled code is ever run."""
        return read_checkpoint(path, map_location)


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
            damaged = archive.testzip()  # torch.load does not look at the checksums
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
    return content


def last_of(run: Path) -> Path:
    """Where the newest checkpoint of a run's folder is, or would be."""
    return run / FOLDER / LAST


def find_checkpoint(path: str, runs: Path) -> Path:
    """The checkpoint meant by ``path``: a file, or "last" for that of the newest run in ``runs``.

    A run that was killed before its first checkpoint has nothing to go on from and is passed over.

    Raises:
        InputError: if there is none.
    """
    if path != "last":
        return _local(path)
    found = [
        (int(match[1]), last_of(version))
        for version in runs.glob("version_*")
        if (match := re.fullmatch(r"version_(\d+)", version.name)) and last_of(version).is_file()
    ]
    if not found:
        raise InputError(
            f"there is no run to resume in {runs}: leave --ckpt_path out to start one."
        )
    return max(found)[1]


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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpoints(Checkpoint):
    """Saves last.ckpt every so many updates and at the end, keeping the one before.

    Also when SIGINT or SIGTERM ask the training to stop, which it does then, with
    :class:`~onelayer.training.interrupt.Stopped`. Networks that have all diverged are not saved:
    what was good before them stays.

    Args:
        every: updates between checkpoints.
    """

    def __init__(self, every: int = 1000) -> None:
        super().__init__()
        check_whole("every", every, at_least=1)
        self.every = every
        self._saved = -1
        self._request = StopRequest()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write through AtomicCheckpointIO unless the user brought another plugin."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def next_look(self, step: int) -> int | None:
        """The next multiple of ``every``."""
        return (step // self.every + 1) * self.every

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sweep what a killed run left half-written."""
        if trainer.is_global_zero and (folder := _folder(trainer)) and folder.is_dir():
            for leftover in folder.glob(f"*{SUFFIX}"):
                leftover.unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where ``next_look`` said, but an epoch's last batch only once the epoch has ended.

        Lightning's counters of a checkpoint made in between would count that epoch twice.
        """
        if not _epoch_is_over(trainer):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what ``on_train_batch_end`` put off."""
        self._save_if_due(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a signal ends a block of updates, not the process."""
        if _folder(trainer) is not None:
            self._request.watch()
            if trainer.received_sigterm:  # a moment ago, when only Lightning listened
                self._request.signum = signal.SIGTERM

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final networks."""
        self._save(trainer)
        self._request.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back, however the training ended."""
        self._request.release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._request.release()

    def _save_if_due(self, trainer: Trainer) -> None:
        signum = self._asked_to_stop(trainer)
        if signum or trainer.global_step % self.every == 0:
            self._save(trainer)
        if signum:
            raise Stopped(signum, trainer.global_step, f"{_folder(trainer)}/{LAST}")

    def _asked_to_stop(self, trainer: Trainer) -> int:
        """The signal; of several processes any one's stops all, after the same update."""
        signum = self._request.signum
        if trainer.world_size == 1:
            return signum
        asked = trainer.strategy.reduce_boolean_decision(bool(signum), all=False)
        return signum or (signal.SIGTERM if asked else 0)

    def _save(self, trainer: Trainer) -> None:
        folder = _folder(trainer)
        if folder is None or self._saved == trainer.global_step:
            return
        if not _has_finite_member(trainer.lightning_module):
            return
        for logger in trainer.loggers:
            logger.save()  # what came before the checkpoint is not told again after it
        last = folder / LAST
        if trainer.is_global_zero and last.is_file():
            _keep_as_previous(last)
        trainer.save_checkpoint(last, weights_only=False)
        self._saved = trainer.global_step


def _has_finite_member(module: Any) -> bool:
    return not hasattr(module, "finite_members") or bool(module.finite_members().any())


def _keep_as_previous(last: Path) -> None:
    """Give the file a second name; it keeps its own until the next one replaces it."""
    partial = last.with_name(f"{PREVIOUS}.{os.getpid()}{SUFFIX}")
    try:
        partial.unlink(missing_ok=True)
        os.link(last, partial)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(last, partial)
    os.replace(partial, last.with_name(PREVIOUS))


def _folder(trainer: Trainer) -> Path | None:
    run = run_folder(trainer)
    return run / FOLDER if run else None


def _epoch_is_over(trainer: Trainer) -> bool:
    loader: Any = trainer.train_dataloader
    return trainer.global_step % len(loader) == 0

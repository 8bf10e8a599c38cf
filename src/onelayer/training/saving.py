"""Callbacks that save: the newest checkpoint and the one before, and snapshots of cycles."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from onelayer.core.checks import check_whole
from onelayer.core.errors import InputError
from onelayer.training.checkpoint import AtomicCheckpointIO, load_network
from onelayer.training.files import PARTIAL
from onelayer.training.folder import FOLDER, LAST, PREVIOUS, run_folder
from onelayer.training.interrupt import Stopped, StopRequest
from onelayer.training.module import OneLayer
from onelayer.training.observer import Observer, observers


class Checkpoints(Observer, ModelCheckpoint):
    """A ModelCheckpoint with other defaults: last.ckpt every so many updates, and previous.ckpt.

    It also saves at the end, and when SIGINT or SIGTERM stops the run, which then raises
    :class:`~onelayer.training.interrupt.Stopped`. Networks that have all diverged are not saved.
    Files are complete or not there (:class:`AtomicCheckpointIO`).

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
        _write_atomically(trainer)
        with warnings.catch_warnings():  # a run that is resumed has checkpoints
            warnings.filterwarnings("ignore", message=".*exists and is not empty")
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed run left half-written; find the last checkpoint of a resumed run.

        In a folder with another run's last.ckpt this run writes last-v1.ckpt.
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
        """Let a signal end a block of updates instead of the process."""
        super().on_train_start(trainer, pl_module)
        self._request.watch()
        if trainer.received_sigterm:  # a moment ago, when only Lightning listened
            self._request.signum = signal.SIGTERM

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is due. After a signal, save and stop."""
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
        """Restore the signal handlers."""
        self._request.release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restore the signal handlers."""
        super().on_exception(trainer, pl_module, exception)
        self._request.release()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the folder follows from the run, which may have been moved."""
        return {}

    def _asked_to_stop(self, trainer: Trainer) -> int:
        """Return the signal; in one of several processes it stops all after the same update."""
        signum = self._request.signum
        if trainer.world_size == 1:
            return signum
        asked = trainer.strategy.reduce_boolean_decision(bool(signum), all=False)
        return signum or (signal.SIGTERM if asked else 0)

    def _save_now(self, trainer: Trainer) -> None:
        """Save, unless this update has been saved."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Save as ModelCheckpoint does, and keep the checkpoint before; skip diverged networks."""
        if not _has_finite_member(trainer.lightning_module):
            return
        for logger in trainer.loggers:
            logger.save()  # what came before the checkpoint is not logged again after it
        last = Path(filepath)
        if trainer.is_global_zero and last.is_file():
            _keep_as_previous(last)
        super()._save_checkpoint(trainer, filepath)
        self.last_model_path = filepath


class Snapshots(Observer):
    """Saves a checkpoint at the end of each cycle, where the learning rate is lowest.

    Huang et al., *Snapshot Ensembles: Train 1, Get M for Free* (ICLR 2017, arXiv:1704.00109).
    cycle_1.ckpt, cycle_2.ckpt, … are ordinary checkpoints. Results measures the ensemble of all
    networks with one λ; ``load_network`` takes the list of files.

    Args:
        last: number of cycles to keep, the last ones; None for all, 0 for none.
        dirpath: folder of the files; ``checkpoints/`` of the run by default.

    Raises:
        InputError: the learning rate has no cycles.
    """

    def __init__(self, last: int | None = None, dirpath: str | None = None) -> None:
        if last is not None:
            check_whole("last", last, at_least=0)
        self.last, self.dirpath = last, dirpath
        self.network: OneLayer | None = None  # members of all snapshots, once a fit has ended
        self._saved: list[int] = []  # updates after which files were written
        self._cycle = 0  # updates; 0 if nothing is saved

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write complete files or none; run after Curves, whose metrics a file has."""
        _write_atomically(trainer)
        owner = cast(Any, trainer)
        owner.callbacks = [*(c for c in owner.callbacks if c is not self), self]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the cycle."""
        self.network, self._cycle = None, 0
        self._saved = [step for step in self._saved if step <= trainer.global_step]
        if self.last == 0:
            return
        self._cycle = next((o.cycle for o in observers(trainer) if o.cycle), 0)
        if not self._cycle:
            raise InputError("snapshots are saved at the ends of cycles. Add a TriangularLR.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the files of a resumed run; save one that a kill came before."""
        self._find(trainer)
        self._save(trainer)

    def _find(self, trainer: Trainer) -> None:
        folder = self._folder(trainer)
        if trainer.ckpt_path and self._cycle and folder is not None:
            ends = range(self._cycle, trainer.global_step + 1, self._cycle)
            self._saved = [step for step in ends if self._path(folder, step).is_file()]

    def next_due(self, step: int) -> float:
        """Return the end of the cycle of the next update."""
        return (step // self._cycle + 1) * self._cycle if self._cycle else super().next_due(step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the end of a cycle, unless all networks have diverged."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        step, folder = trainer.global_step, self._folder(trainer)
        due = self._cycle and step and step % self._cycle == 0 and step not in self._saved
        if not due or folder is None or not _has_finite_member(trainer.lightning_module):
            return
        self._saved.append(step)
        trainer.save_checkpoint(self._path(folder, step))
        while self.last is not None and len(self._saved) > self.last:
            trainer.strategy.remove_checkpoint(self._path(folder, self._saved.pop(0)))

    def _folder(self, trainer: Trainer) -> Path | None:
        if self.dirpath is not None:
            return Path(self.dirpath)
        return run / FOLDER if (run := run_folder(trainer)) else None

    def _path(self, folder: Path, step: int) -> Path:
        return folder / f"cycle_{step // self._cycle}.ckpt"

    def networks(self, trainer: Trainer, pl_module: LightningModule) -> list[LightningModule]:
        """Return the networks of all snapshots as one module, if a run has saved any."""
        folder = self._folder(trainer)
        if not self._saved:
            self._find(trainer)  # of a complete run, for which Lightning starts no training
        if self.network is None and self._saved and folder is not None:
            paths = [self._path(folder, step) for step in self._saved]
            self.network = load_network(paths).to(pl_module.device)
            self.network.ensembles.mirror = cast(OneLayer, pl_module).ensembles.mirror
        return [] if self.network is None else [self.network]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate the snapshots on the same batch."""
        if self.network is not None:
            self.network.ensembles.mirror = cast(OneLayer, pl_module).ensembles.mirror
            self.network.to(pl_module.device).test_step(batch, batch_idx)


def _write_atomically(trainer: Trainer) -> None:
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def _has_finite_member(module: Any) -> bool:
    return not isinstance(module, OneLayer) or bool(module.finite_members().any())


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

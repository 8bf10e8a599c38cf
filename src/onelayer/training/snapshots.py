"""Snapshots: the networks at the ends of cycles, which answer together."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from onelayer.core.checks import check_dense, check_whole
from onelayer.core.errors import InputError
from onelayer.data.adapter import pair
from onelayer.training.checkpoint import AtomicCheckpointIO
from onelayer.training.curves import figures_of
from onelayer.training.folder import FOLDER, run_folder
from onelayer.training.module import OneLayer, checkpoint_of, snapshots_of
from onelayer.training.observer import Observer, observers
from onelayer.training.population import Population

FILE = "snapshots.ckpt"


class Snapshots(Observer):
    """Keeps the networks at the ends of cycles, where the rate is lowest, as one checkpoint.

    Huang et al., *Snapshot Ensembles: Train 1, Get M for Free* (ICLR 2017, arXiv:1704.00109).
    snapshots.ckpt, beside the run's other checkpoints, is one like any other: every network at the
    end of each cycle is a member. Those of one λ are an ensemble, which Results measures with the
    networks that the training ends with. Until then they are part of the run's own checkpoints: one
    that is killed and resumed leaves the same.

    Args:
        last: of how many cycles, the last ones; None for all, 0 for none.
        dirpath: folder of snapshots.ckpt; ``checkpoints/`` of the run by default.

    Raises:
        InputError: there is no rate that cycles.
    """

    def __init__(self, last: int | None = None, dirpath: str | None = None) -> None:
        if last is not None:
            check_whole("last", last, at_least=0)
        self.last, self.dirpath = last, dirpath
        self.network: OneLayer | None = None  # of all snapshots, when a fit has ended
        self._kept: dict[int, list[Tensor]] = {}  # parameters (m, …) after so many updates
        self._saved: dict[str, Any] = {}
        self._cycle = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the cycle, and take over the snapshots of a run that is resumed.

        Raises:
            InputError: no cycle, or those in the checkpoint are not of these networks.
        """
        # A training that goes on keeps those before; one that begins anew has none.
        self._kept = {k: v for k, v in self._kept.items() if k <= trainer.global_step}
        self._cycle, self.network = 0, None
        saved, self._saved = self._saved, {}
        if self.last == 0 or not isinstance(pl_module, Population):
            return
        self._cycle = next((o.cycle for o in observers(trainer) if o.cycle), 0)
        if not self._cycle:
            raise InputError("snapshots are taken where cycles end: a TriangularLR makes them.")
        if saved:
            self._kept = _restored(saved, pl_module, self._cycle)
            self._drop_old()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse snapshots of later updates than the checkpoint's."""
        if self._kept and max(self._kept) > trainer.global_step:
            raise InputError(
                f"the checkpoint has a snapshot after {max(self._kept)} updates, and itself stands "
                f"at {trainer.global_step}: it is damaged, or was changed."
            )

    def next_due(self, step: int) -> float:
        """The end of the cycle that the update after ``step`` updates is in."""
        return (step // self._cycle + 1) * self._cycle if self._cycle else super().next_due(step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the networks where a cycle ends, unless all of them have diverged."""
        step, module = trainer.global_step, cast(Population, pl_module)
        if not self._cycle or not step or step % self._cycle or step in self._kept:
            return
        if bool(module.finite_members().any()):
            self._kept[step] = [p.detach().cpu().clone() for p in module.weights]
            self._drop_old()

    def _drop_old(self) -> None:
        while self.last is not None and len(self._kept) > self.last:
            del self._kept[min(self._kept)]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint."""
        folder = self.dirpath or ((run := run_folder(trainer)) and run / FOLDER)
        if self.networks(trainer, pl_module) and folder and trainer.is_global_zero:
            data, network = cast(Any, trainer).datamodule, cast(OneLayer, self.network)
            content = checkpoint_of(network, data, max(self._kept))
            AtomicCheckpointIO().save_checkpoint(content, Path(folder) / FILE)

    def networks(self, trainer: Trainer, pl_module: LightningModule) -> list[LightningModule]:
        """Those at the ends of cycles as one module, with their figures on validation."""
        if self.network is None and self._kept:
            module, steps = cast(Population, pl_module), sorted(self._kept)
            parameters = zip(*(self._kept[step] for step in steps), strict=True)
            self.network = snapshots_of(module, steps, [torch.cat(own) for own in parameters])
            figures = figures_of(trainer, self.network, "val")
            if figures is not None:
                self.network.validated(figures)
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
        """Let them see what the networks see that the training has ended with."""
        if self.network is not None:
            self.network.ensembles.mirror = cast(Population, pl_module).ensembles.mirror
            self.network.to(pl_module.device).test_step(pair(batch), batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """The snapshots so far: the updates after which they were taken, tensors (c, m, …)."""
        if not self._kept:
            return {}
        tensors = map(torch.stack, zip(*self._kept.values(), strict=True))
        return {"steps": list(self._kept), "parameters": list(tensors)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them for ``on_fit_start``, which knows whose they must be."""
        self._saved = state_dict


def _restored(saved: dict[str, Any], module: Population, cycle: int) -> dict[int, list[Tensor]]:
    """The snapshots of a checkpoint.

    Raises:
        InputError: they are not of these networks at ends of these cycles.
    """
    steps: Any = saved.get("steps")
    tensors: Any = saved.get("parameters")
    whole = isinstance(steps, list) and all(type(step) is int and step > 0 for step in steps)
    fits = (
        whole
        and not any(step % cycle for step in steps)
        and all(a < b for a, b in pairwise(steps))
        and isinstance(tensors, list)
        and len(tensors) == len(module.weights)
        and all(
            isinstance(T, Tensor) and T.shape == (len(steps), *p.shape) and T.dtype == p.dtype
            for T, p in zip(tensors, module.weights, strict=True)
        )
    )
    if not fits:
        raise InputError(
            "the checkpoint's snapshots are not those of its networks at the ends of its cycles: "
            "it is damaged, or was changed."
        )
    for T in tensors:
        check_dense("a snapshot in the checkpoint", T)
    return {step: [T[i].cpu().clone() for T in tensors] for i, step in enumerate(steps)}

"""Blocks: several updates in one training_step, unless something needs every batch.

Lightning spends about half a millisecond on a batch even when nothing happens in between. An update
of these networks takes less. So one training_step makes many updates when no callback or option
needs to see each batch. Each update is counted as a batch: ``global_step``, ``batch_idx``,
validations, checkpoints, limits and epochs are those of one update at a time. The module remains an
ordinary one with automatic optimisation: :class:`Blocks` replaces its hooks when a fit starts and
restores them when it ends. If something needs every batch, a log line says what, and Lightning runs
one update at a time.

This file uses parts of Lightning's loops that Lightning does not document: the data fetcher that
passes its iterator to a step, the decision to validate, and the counters of batches and updates.
Only :mod:`onelayer.training.resume` does so as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import AdvancedProfiler, PassThroughProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import SGD

from onelayer.core.update import FusedUpdate, RecordedUpdate, SharedUpdate, Update, has_graphs
from onelayer.data.loader import ResidentLoader
from onelayer.training.observer import Observer, callbacks_of, observers, scheduled_rate

MAX_BLOCK = 100  # updates per block; the progress bar and signals wait for its end

BATCH_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
"""Hooks that Lightning calls for every batch."""
EPOCH_HOOKS = ("on_train_start", "on_train_epoch_start", "on_train_epoch_end")
STEPS = (
    "training_step",
    "forward",
    "cost",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
"""Other methods of a module that take part in an update."""
TRANSFERS = STEPS[-3:]

HARMLESS = (
    lightning_callbacks.ProgressBar,
    lightning_callbacks.TQDMProgressBar,
    lightning_callbacks.RichProgressBar,
    lightning_callbacks.ModelSummary,
    lightning_callbacks.RichModelSummary,
    lightning_callbacks.ModelCheckpoint,
    lightning_callbacks.OnExceptionCheckpoint,
    lightning_callbacks.EarlyStopping,
    lightning_callbacks.Timer,
    lightning_callbacks.LearningRateMonitor,
    lightning_callbacks.BasePredictionWriter,
    lightning_callbacks.BatchSizeFinder,
    lightning_callbacks.LearningRateFinder,
)
"""Lightning's callbacks whose hooks run correctly at the end of a block, see :func:`_due`."""


BARS = (lightning_callbacks.TQDMProgressBar, lightning_callbacks.RichProgressBar)


class Blocks(Callback):
    """Makes the updates of a OneLayer in blocks, unless something needs every batch.

    OneLayer adds this callback.

    Attributes:
        reason: why the last fit made one update at a time; None if it made blocks.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._hooks: _Hooks | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide, and log the reason if every update is a training_step of its own."""
        self.reason = next(reasons(trainer, pl_module), None)
        if self.reason:
            rank_zero_info(f"one update at a time: {self.reason}")
        else:
            self._hooks = _Hooks(trainer, pl_module)
            self._hooks.install()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the module's own hooks."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restore the module's own hooks."""
        self._restore()

    def _restore(self) -> None:
        if self._hooks:
            self._hooks.restore()
            self._hooks = None


# ---- reasons against blocks


def reasons(trainer: Any, module: Any) -> Iterator[str]:
    """Yield the reasons why a fit cannot run in blocks, in words."""
    loader = trainer.train_dataloader
    if not isinstance(loader, ResidentLoader):
        yield f"the training batches come from a {type(loader).__name__}, not a ResidentLoader"
    if not module.fused:
        yield "model.fused is false"
    for name in module.overridden((*BATCH_HOOKS, *STEPS)):
        yield f"{type(module).__name__} has a {name} of its own"
    if trainer.datamodule is not None:
        for name in TRANSFERS:
            if function_of(trainer.datamodule, name) is not getattr(DataHooks, name):
                yield f"{type(trainer.datamodule).__name__} has an {name} of its own"
    yield from _of_gradients(trainer, module)
    yield from _of_trainer(trainer)
    for callback in callbacks_of(trainer):
        if wants_batches(callback):
            yield f"{type(callback).__name__} wants every batch"


def _of_gradients(trainer: Any, module: Any) -> Iterator[str]:
    """Yield the reasons to let autograd and the optimizer make the updates."""
    if trainer.lr_scheduler_configs:
        yield "a scheduler sets the learning rate"
    if len(trainer.optimizers) != 1:
        yield f"there are {len(trainer.optimizers)} optimizers"
        return
    yield from _of_optimizer(trainer.optimizers[0], module)
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in module.weights):
        yield "a hook is registered on a parameter's gradient"
    if module._forward_hooks or module._forward_pre_hooks:
        yield "a hook is registered on the module"


def _of_optimizer(optimizer: Any, module: Any) -> Iterator[str]:
    if type(optimizer) is not SGD:
        yield f"the optimizer is {type(optimizer).__name__}"
        return
    group = optimizer.param_groups[0]
    if any(group.get(key) for key in ("momentum", "weight_decay", "maximize", "differentiable")):
        yield "the optimizer has momentum, weight_decay or the like"
    mine = {id(p) for p in module.parameters()}
    if len(optimizer.param_groups) != 1 or {id(p) for p in group["params"]} != mine:
        yield "the optimizer has not all parameters in one group"
    if len(mine) != len(module.weights):
        yield "the module has parameters beside the network's"
    if not all(p.requires_grad for p in module.parameters()):
        yield "a parameter is frozen"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        yield "a hook is registered on the optimizer"


def _of_trainer(trainer: Any) -> Iterator[str]:
    if trainer.gradient_clip_val:
        yield "gradients are clipped"
    if trainer.accumulate_grad_batches != 1:
        yield "gradients are accumulated"
    if trainer._detect_anomaly:
        yield "detect_anomaly checks every gradient"
    if trainer.reload_dataloaders_every_n_epochs:
        yield "the loaders are made anew after epochs"
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        yield "val_check_interval is a time"
    if type(trainer.profiler) not in (PassThroughProfiler, SimpleProfiler, AdvancedProfiler):
        yield f"{type(trainer.profiler).__name__} counts batches"
    precision = trainer.precision_plugin
    plain = type(precision) in (Precision, DoublePrecision, MixedPrecision)
    if not plain or getattr(precision, "scaler", None) is not None:
        yield f"precision {trainer.precision} treats every gradient"
    strategy = type(trainer.strategy)
    if strategy is not SingleDeviceStrategy and strategy is not DDPStrategy:
        yield f"{strategy.__name__} treats every gradient"


def wants_batches(callback: Callback) -> bool:
    """Return whether a callback needs every batch to be a training_step."""
    harmless = _harmless(BATCH_HOOKS + EPOCH_HOOKS)
    for name in BATCH_HOOKS + EPOCH_HOOKS:
        function = function_of(callback, name)
        if function in harmless or (
            name == "on_train_batch_end" and isinstance(callback, Observer)
        ):
            continue
        # Among hooks of epochs only Lightning's own callbacks change what a batch does.
        if name in BATCH_HOOKS or str(function.__module__).startswith("lightning."):
            return True
    return False


def overrides(callback: Callback, names: Sequence[str]) -> bool:
    """Return whether a callback does something of its own in one of these hooks."""
    harmless = _harmless(names)
    return any(function_of(callback, name) not in harmless for name in names)


def _harmless(names: Sequence[str]) -> set[Any]:
    return {getattr(kind, name) for kind in (Callback, *HARMLESS) for name in names}


def function_of(owner: object, name: str) -> Any:
    """Return the function that a method calls: its class's, or one set on the object."""
    method = getattr(owner, name)
    return getattr(method, "__func__", method)


# ---- the end of a block


def next_stop(trainer: Any, step: int) -> int:
    """Return the update that ends the block which begins after ``step`` updates."""
    stops: list[float] = [step + MAX_BLOCK]
    if trainer.max_steps > 0:
        stops.append(trainer.max_steps)
    progress = trainer.fit_loop.epoch_loop.batch_progress
    # A training_step begins: Lightning has counted its first batch already.
    epoch = progress.current.ready - 1
    if trainer.enable_validation and trainer.val_check_batch != math.inf:
        counted = progress.total.ready - 1 if trainer.check_val_every_n_epoch is None else epoch
        stops.append(step + _until(counted, trainer.val_check_batch))
    stops += [_due(callback, trainer, step, epoch) for callback in callbacks_of(trainer)]
    return int(min(stops))


def _due(callback: Callback, trainer: Any, step: int, epoch: int) -> float:
    """Return the update at which a callback must run next; ``epoch``: updates in this epoch."""
    due = callback.next_due(step) if isinstance(callback, Observer) else math.inf
    if isinstance(callback, lightning_callbacks.ModelCheckpoint):
        due = min(due, step + _until(step, callback._every_n_train_steps))
    if isinstance(callback, lightning_callbacks.LearningRateMonitor):
        # It logs at the start of the batch that completes a multiple.
        due = min(due, step + _until(step + 1, trainer.log_every_n_steps))
    if isinstance(callback, BARS):
        every = callback.refresh_rate
        due = min(due, step + _until(epoch, every * max(1, MAX_BLOCK // every) if every else 0))
    return due


def _until(count: int, every: float) -> float:
    """Return the distance to the next multiple of ``every``, at least 1; infinity for 0."""
    return every - count % every if every >= 1 else math.inf


# ---- the hooks


class _Hooks:
    """Hooks of a module while its updates run in blocks."""

    NAMES = ("training_step", "backward", "optimizer_step")

    def __init__(self, trainer: Any, module: Any) -> None:
        self.trainer, self.module = trainer, module
        self.loop = trainer.fit_loop.epoch_loop
        self.loader: ResidentLoader = trainer.train_dataloader
        self.update = _choose_update(module, trainer.world_size > 1)
        self.shared = 1 < trainer.world_size == self.loader.processes[1]
        self.share = self.loader.processes if self.shared else (0, 1)
        self.schedules = [
            o for o in observers(trainer) if function_of(o, "rate") is not Observer.rate
        ]
        self.plain = False  # whether this step is one update, as Lightning makes it

    def install(self) -> None:
        """Install these hooks, and the fetcher that passes its iterator to a step."""
        for name in self.NAMES:
            setattr(self.module, name, getattr(self, name))
        self.loop._should_check_val_fx = self.should_check_val
        fetcher = _DataLoaderIterDataFetcher()
        fetcher.setup(self.trainer.fit_loop._combined_loader)
        iter(fetcher)
        # A resumed run may have only the end of an epoch left.
        fetcher.done = self.trainer.fit_loop._data_fetcher.done
        self.trainer.fit_loop._data_fetcher = fetcher

    def restore(self) -> None:
        """Restore the hooks of the module's class."""
        for name in self.NAMES:
            vars(self.module).pop(name, None)
        vars(self.loop).pop("_should_check_val_fx", None)

    def training_step(self, batches: Any) -> Tensor:
        """Make the updates of a block; return the cost of its last batch before its update.

        Args:
            batches: Lightning's iterator, which counts the batches it yields.
        """
        # A callback may have frozen a parameter or changed the optimizer as the epoch started.
        self.plain = next(_of_gradients(self.trainer, self.module), None) is not None
        step = self.trainer.global_step
        stop = step + 1 if self.plain else next_stop(self.trainer, step)
        cost, done = None, 0
        try:
            while cost is None:
                X, y, weight = self._next(batches)
                if step + done + 1 >= stop or batches.done:
                    with torch.set_grad_enabled(self.plain):
                        cost = self.module.batch_cost(X, y, step + done, weight=weight)
                if not self.plain:
                    n = self.loader.last_batch_size() if self.shared else None
                    mask = self.module.dropout_mask(n or len(X), step + done, 0, self.share)
                    weight = self.module.sample_weight(y, weight)
                    self.update(X, y, self._rate(step + done), n, mask, weight)
                done += 1
        except BaseException:
            self._count(batches, done)
            raise
        self._count(batches, done - 1)
        return cast(Tensor, cost)

    def _next(self, batches: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        (X, y, *weight), _, _ = next(batches)
        W = self.module.weights[0]
        if X.device != W.device or X.dtype != W.dtype:
            X, y = self.trainer.precision_plugin.convert_input((X, y))
            X, y = X.to(W.device), y.to(W.device)
        return X, y, weight[0].to(W.device, W.dtype) if weight else None

    def _rate(self, step: int) -> float:
        rate = scheduled_rate(self.schedules, step)
        return float(self.trainer.optimizers[0].param_groups[0]["lr"]) if rate is None else rate

    def _count(self, batches: Any, done: int) -> None:
        """Count the updates that Lightning does not count as batches."""
        progress = self.loop.batch_progress
        progress.increment_by(done, batches.done)
        updates = self.loop.automatic_optimization.optim_progress.optimizer.step.total
        updates.ready += done
        updates.completed += done
        self.loop._batches_that_stepped += done
        # The fetcher counts from its own start, which after resuming is not the epoch's start.
        batches.data_fetcher._batch_idx = progress.current.ready - 1

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the updates have been made."""
        if self.plain:
            type(self.module).backward(self.module, loss, *args, **kwargs)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, closure: Callable[[], Any]
    ) -> None:
        """Run the training_step, which makes the updates."""
        if self.plain:
            type(self.module).optimizer_step(self.module, epoch, batch_idx, optimizer, closure)
        else:
            closure()

    def should_check_val(self, fetcher: Any) -> bool:
        """Return whether to validate now, by Lightning's rule for ordinary fetchers.

        The rule for a fetcher that passes its iterator would validate at every epoch's end.
        """
        return bool(type(self.loop)._should_check_val_fx(self.loop, _DataFetcher()))


def _choose_update(module: Any, together: bool) -> Update:
    """Return the kind of update for this device and number of processes."""
    kind: type[FusedUpdate] = FusedUpdate
    if together:
        kind = SharedUpdate
    elif module.cuda_graphs and has_graphs(module.device):
        kind = RecordedUpdate
    return kind(module.weights, module.l2, module.label_smoothing)

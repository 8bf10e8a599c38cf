"""OneLayer: one network or many, with the hand-written gradient, as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from onelayer.core import autograd, formulas
from onelayer.core.checks import check_number, check_whole
from onelayer.core.errors import InputError
from onelayer.core.graph import Graphs, has_graphs
from onelayer.core.network import initial_parameters, parameter_shapes
from onelayer.data.loader import Block, ResidentLoader, check_batch
from onelayer.training.distributed import descend_together_
from onelayer.training.measure import Measure, mean_of_finite

MAX_BLOCK = 100
"""Updates at most between two looks at the progress bar and for signals."""


class Member(NamedTuple):
    """What tells one network of the population from the others."""

    l2: float
    seed: int


class OneLayer(LightningModule):
    """A population of softmax networks without or with one hidden ReLU layer.

    ``l2`` and ``seeds`` take a number or a list; lists make a population, their product, trained
    in one pass. Members see the same batches, never influence each other, and end as each would
    have alone.

    Args:
        hidden: hidden units; 0 is the linear softmax.
        l2: λ of the penalty λ Σ W² (not λ/2; SGD's weight_decay would be 2λ), >= 0.
        seeds: seed of the initial weights, >= 0.
        lr: learning rate where no TriangularLR sets it.
        init_std: standard deviation of the initial weights; 1/sqrt(fan_in) by default.
        fused: update by one GEMM per layer instead of autograd.Function and optimizer.step().
            The same formulas, and the same results up to rounding.
        cuda_graphs: on a GPU, launch a fused update as a whole (a CUDA graph) instead of kernel by
            kernel. The same formulas once more; nothing changes on a CPU.
        inputs: d, pixels of an image.
        classes: k.

    Raises:
        InputError: naming the argument, its value and its range.

    Example::

        model = OneLayer(hidden=50, l2=0.01, seeds=[0, 1, 2])
        trainer = Trainer(max_steps=4800, callbacks=[TriangularLR(step_size=800, cycles=3)])
        trainer.fit(model, datamodule=CIFAR10DataModule())
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        hidden: int = 0,
        l2: float | list[float] = 0.0,
        seeds: int | list[int] = 0,
        lr: float = 0.01,
        init_std: float | None = None,
        fused: bool = True,
        cuda_graphs: bool = True,
        inputs: int = 3072,
        classes: int = 10,
    ) -> None:
        super().__init__()
        check_whole("hidden", hidden, at_least=0)
        check_whole("inputs", inputs, at_least=1)
        check_whole("classes", classes, at_least=2)
        check_number("lr", lr)
        if init_std is not None:
            check_number("init_std", init_std)
        l2s, seed_list = _as_list("l2", l2), _as_list("seeds", seeds)
        for value in l2s:
            check_number("l2", value)
        for value in seed_list:
            check_whole("seeds", value, at_least=0)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.hidden, self.fused, self.cuda_graphs = hidden, fused, cuda_graphs
        self._descend_: Callable[..., None] = formulas.descend_
        self.members = [Member(float(value), seed) for value in l2s for seed in seed_list]
        if len(set(self.members)) < len(self.members):
            raise InputError(f"l2 and seeds must not repeat a value, not l2={l2}, seeds={seeds}.")

        start = initial_parameters([s for _, s in self.members], hidden, inputs, classes, init_std)
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value.to(torch.get_default_dtype())))
        self.names = list(parameter_shapes(hidden, inputs, classes))
        # Of the pixels of the training split, so that new images can be told without it.
        self.register_buffer("mean", torch.zeros(inputs, dtype=torch.float64))
        self.register_buffer("std", torch.ones(inputs, dtype=torch.float64))
        self.measured = Measure(len(self.members))
        self._l2: formulas.Scalar = l2s[0]
        self._processes = 1

    # ---- the network

    @property
    def weights(self) -> list[Tensor]:
        """The parameters in the order of formulas: W, b or W1, b1, W2, b2."""
        return [getattr(self, name) for name in self.names]

    def l2_coefficient(self) -> formulas.Scalar:
        """λ as formulas take it: a number where all members share it, else (m,)."""
        l2s = [member.l2 for member in self.members]
        if len(set(l2s)) == 1:
            return l2s[0]
        if not isinstance(self._l2, Tensor) or self._l2.device != self.device:
            self._l2 = torch.tensor(l2s, dtype=self.weights[0].dtype, device=self.device)
        return self._l2

    def forward(self, X: Tensor) -> Tensor:
        """Logits (m, n, k) of standardised images X (n, d)."""
        return formulas.logits(X, self.weights)

    def cost(self, X: Tensor, y: Tensor) -> Tensor:
        """Cost J (m,), differentiable with the analytic gradient. Differentiate its sum."""
        return autograd.cost(X, y, self.weights, self.l2_coefficient())

    @torch.no_grad()
    def evaluate(self, X: Tensor, y: Tensor) -> dict[str, Tensor]:
        """``cost``, ``loss``, ``accuracy`` (0 to 1) of each member over a split, (m,) each.

        Like :meth:`predict_proba` wherever X and y lie: after training on a GPU the module is in
        host memory, the data are not.
        """
        measure = Measure(len(self.members)).to(self.device)
        measure.update(X.to(self.device), y.to(self.device), self.weights)
        return self.figures(measure)

    @torch.no_grad()
    def figures(self, measure: Measure) -> dict[str, Tensor]:
        """A measure's loss and accuracy, and the cost: loss plus the penalty."""
        # torchmetrics makes a scalar of a result (1,)
        result = {name: value.reshape(-1) for name, value in measure.compute().items()}
        weights = [p.double() for p in self.weights]
        l2 = torch.tensor([m.l2 for m in self.members], dtype=torch.float64, device=self.device)
        return {"cost": result["loss"] + formulas.penalty(weights, l2), **result}

    @torch.no_grad()
    def finite_members(self) -> Tensor:
        """Which members have finite weights, bool (m,)."""
        return torch.stack([p.flatten(1).isfinite().all(1) for p in self.weights]).all(0)

    @torch.no_grad()
    def predict_proba(self, X: Tensor) -> Tensor:
        """Class probabilities (n, k) of standardised images: the mean over the members.

        Members that have diverged know none and are left out.
        """
        return formulas.logits(X.to(self.device), self.weights).softmax(-1).nanmean(0)

    # ---- training

    def configure_optimizers(self) -> Optimizer:
        """Plain SGD; the penalty is part of the gradient, so no weight_decay."""
        return SGD(self.parameters(), lr=self.hparams["lr"])

    def configure_callbacks(self) -> list[Callback]:
        """Curves, and Divergence that judges them, unless the trainer has its own."""
        from onelayer.training.curves import Curves
        from onelayer.training.divergence import Divergence

        present: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [
            kind()
            for kind in (Curves, Divergence)
            if not any(isinstance(callback, kind) for callback in present)
        ]

    def training_step(self, batch: Block | Sequence[Tensor], batch_idx: int) -> None:
        """The updates of one block, or of one batch ``(X, y)`` of any other loader."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        for i, (X, y, n) in enumerate(self._batches(batch)):
            for callback in self._rate_setters:
                callback.before_update(optimizer, self.global_step)
            self.update(X, y, optimizer, n)
            self._count_update(first_of_block=i == 0)

    def _batches(
        self, batch: Block | Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, int | None]]:
        """X, y of each update, and the size of its batch over all processes where it is known."""
        if isinstance(batch, Block):
            for (X, y), n in zip(batch, batch.sizes, strict=True):
                yield X, y, n
        else:
            yield *self._checked(batch), None

    def _checked(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A batch of a loader that may not be ours, and have checked nothing.

        Values are looked at in host memory only: on a device it would wait for every batch.
        """
        X, y = batch
        autograd.check_shapes(X, y, self.weights)
        if X.device.type == "cpu":
            check_batch(X, y, classes=self.weights[-1].shape[1])
        return X, y

    def update(self, X: Tensor, y: Tensor, optimizer: Optimizer, n: int | None = None) -> None:
        """One update of every member: θ ← θ - η ∂J/∂θ. All training goes through here.

        ``n`` is the size of the batch over all processes, where there are several.
        """
        if self.fused or self._processes > 1:
            lr, X = optimizer.param_groups[0]["lr"], autograd.gemm_input(X)
            with torch.no_grad(), autograd.plain(X):
                if self._processes > 1:
                    descend_together_(X, y, self.weights, self.l2_coefficient(), lr, n)
                else:
                    self._descend_(X, y, self.weights, self.l2_coefficient(), lr)
        else:
            optimizer.zero_grad()
            self.cost(X, y).sum().backward()
            optimizer.step()

    def _count_update(self, first_of_block: bool) -> None:
        """Tell Lightning, so that global_step, max_steps and every x-axis count updates."""
        loop = self.trainer.fit_loop.epoch_loop
        progress = loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()
        if not first_of_block:  # Lightning counts every block as one batch itself
            loop._batches_that_stepped += 1

    def next_stop(self, step: int) -> int:
        """Where the block that starts after ``step`` updates must end, at the latest.

        A block ends wherever somebody looks: at max_steps, at the updates that our callbacks name
        in ``next_look``, where a ModelCheckpoint saves. A callback that wants to see every batch
        and cannot say when gets blocks of one update.
        """
        stops: list[float] = [step + MAX_BLOCK]
        if self.trainer.max_steps > 0:
            stops.append(self.trainer.max_steps)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "next_look"):
                stops.append(callback.next_look(step) or math.inf)
            elif isinstance(callback, ModelCheckpoint):
                every = callback._every_n_train_steps
                stops.append((step // every + 1) * every if every else math.inf)
            elif _sees_batches(callback):
                stops.append(step + 1)
        return int(min(stops))

    # ---- hooks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another network's checkpoint.

        Raises:
            InputError: naming the argument and both values.
        """
        saved = checkpoint.get("hyper_parameters", {})
        for name, value in self.hparams.items():
            if name in saved and saved[name] != value:
                raise InputError(
                    f"model.{name} is {value!r} here but {saved[name]!r} in the checkpoint: "
                    "use the run's own value, or start a new run."
                )

    def setup(self, stage: str) -> None:
        """Take over the training split's statistics.

        Raises:
            InputError: for images or classes that do not fit the network, or for float16, or
                weights in half precision.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        for name, there in (("inputs", "input_size"), ("classes", "num_classes")):
            if self.hparams[name] != getattr(data, there, self.hparams[name]):
                raise InputError(
                    f"model.{name} is {self.hparams[name]}, but the data have "
                    f"{getattr(data, there)}."
                )
        if self.trainer.precision in ("16-true", "bf16-true"):
            raise InputError(
                f"trainer.precision {self.trainer.precision} would round statistics and figures "
                "too: use bf16-mixed, 32-true or 64-true."
            )
        if stage == "fit" and self.trainer.precision == "16-mixed":
            raise InputError(
                "trainer.precision 16-mixed needs a gradient scaler, which the analytic update has "
                "not: use bf16-mixed, or 32-true."
            )
        if stage == "fit" and hasattr(data, "statistics"):
            statistics = data.statistics
            self.mean.copy_(statistics.mean)
            self.std.copy_(statistics.std)

    def on_train_start(self) -> None:
        """Let the loader follow the number of updates, and know who sets the rate.

        Raises:
            InputError: naming an option of the Trainer that blocks of updates cannot honour.
        """
        self._processes = self.trainer.world_size
        if self._processes > 1 and not isinstance(self.trainer.strategy, DDPStrategy):
            raise InputError(
                "several processes train together with --trainer.strategy ddp, not "
                f"{type(self.trainer.strategy).__name__}."
            )
        self._descend_ = formulas.descend_  # whatever a training that broke off has left here
        loader = self.trainer.train_dataloader
        if isinstance(loader, ResidentLoader):
            self._refuse_what_blocks_cannot()
            loader.follow(step=lambda: self.global_step, stop=self.next_stop)
            if self.cuda_graphs and has_graphs(self.device):
                self._descend_ = Graphs()  # of the two sizes of batch that there are
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        self._rate_setters = [c for c in callbacks if hasattr(c, "before_update")]
        self.l2_coefficient()  # on its way to the device now: no update waits for it

    def on_train_end(self) -> None:
        """Let the graphs go, and the memory they hold."""
        self._descend_ = formulas.descend_

    def _refuse_what_blocks_cannot(self) -> None:
        trainer: Any = self.trainer
        if trainer.fast_dev_run:
            return
        for name, usual in (("overfit_batches", 0.0), ("limit_train_batches", 1.0)):
            if getattr(trainer, name) != usual:
                raise InputError(
                    f"trainer.{name} counts Lightning's batches, which here are blocks of many "
                    f"updates: use data.limit or trainer.max_steps instead of {name}."
                )

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Add a batch to the figures."""
        self.measured.update(*self._checked(batch), self.weights)

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        """Start the figures anew."""
        self.measured.reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log the mean over the members as ``val/cost`` and so on."""
        self._log_figures("val")

    def on_test_epoch_end(self) -> None:
        """Log the mean over the members as ``test/cost`` and so on."""
        self._log_figures("test")

    def _log_figures(self, split: str) -> None:
        # Results writes the end of a run as a whole, whatever kills came before.
        told = split == "test" and any(
            hasattr(callback, "writes_test_figures")
            for callback in self.trainer.callbacks  # type: ignore[attr-defined]
        )
        for name, value in mean_of_finite(self.figures(self.measured)).items():
            self.log(f"{split}/{name}", value, logger=False if told else None, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[list[str], Tensor]:
        """Names of the images and their class probabilities (n, k)."""
        X, names = batch
        return list(names), self.predict_proba(X)


def _sees_batches(callback: Callback) -> bool:
    hooks = ("on_train_batch_start", "on_train_batch_end")
    ours = type(callback).__module__.startswith("lightning.pytorch.callbacks.")
    harmless = ours and not isinstance(callback, LearningRateMonitor)  # it logs every update's rate
    return not harmless and any(
        getattr(type(callback), hook) is not getattr(Callback, hook) for hook in hooks
    )


def _as_list(name: str, value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise InputError(f"{name} must be a number or a list of at least one, not {value!r}.")
    return values

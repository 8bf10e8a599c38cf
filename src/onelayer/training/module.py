"""OneLayer: one network or many, with the hand-written gradient, as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from onelayer.core import autograd, formulas
from onelayer.core.checks import (
    LARGEST_SEED,
    check_inputs,
    check_number,
    check_same,
    check_share,
    check_whole,
)
from onelayer.core.class_weight import check_class_weight, learn_class_weights
from onelayer.core.errors import InputError
from onelayer.core.network import finite_members, initial_parameters, parameter_shapes
from onelayer.core.update import processes, samples_of_all
from onelayer.data.adapter import (
    Weighted,
    name_of,
    numbers,
    samples_of,
    shape_of,
    warn_of_several,
    weighted,
)
from onelayer.data.features import Features, SomeRows, Statistics
from onelayer.data.loader import ResidentLoader, check_batch, check_finite
from onelayer.data.split import Splits, Standardised
from onelayer.training.blocks import Blocks, function_of
from onelayer.training.curves import Curves
from onelayer.training.divergence import Divergence
from onelayer.training.dropout import dropout_mask
from onelayer.training.members import Choice, Member, Metrics, by_l2, choose
from onelayer.training.memory import check_making, check_training
from onelayer.training.metrics import (
    EnsembleMeasure,
    Measure,
    Shape,
    check_image,
    mean_of_finite,
    precise_probabilities,
)
from onelayer.training.names import names_of, take_names
from onelayer.training.observer import USUAL_LR, observers
from onelayer.training.portable import Portable
from onelayer.training.records import quantities
from onelayer.training.resume import Resume
from onelayer.training.schema import check_resumable, check_tensors
from onelayer.training.tensorboard import TensorBoard

IMPLEMENTATION = ("fused", "cuda_graphs")  # a run may be resumed with other values of these


class OneLayer(LightningModule, Portable):
    """A population of softmax networks without or with one hidden ReLU layer.

    ``l2`` and ``seeds`` take a number or a list; lists make a population, their product, trained
    in one run. Members share the batches, never influence each other, and end as each would alone.

    Args:
        hidden: hidden units; 0 is the linear softmax.
        l2: λ of the penalty λ Σ W² (not λ/2; SGD's weight_decay would be 2λ), >= 0.
        seeds: seed of the initial weights, >= 0.
        lr: learning rate if no TriangularLR sets it.
        init_std: standard deviation of the initial weights; 1/sqrt(fan_in) by default.
        fused: make an update with one matrix product per layer, and many updates per
            training_step, unless a callback or an option needs every batch. False: use
            autograd.Function and optimizer.step(). Results are the same up to rounding.
        cuda_graphs: on a GPU, launch a fused update as one CUDA graph instead of kernel by kernel.
        inputs: number of features d, such as the pixels of an image.
        classes: number of classes k. The attribute of that name holds the names of the classes,
            as the data or the checkpoint have them, else "0", "1", …; ``outputs`` is k, and
            ``columns`` the names of the features, or None.
        dropout: probability p, from 0 to below 1, that a hidden unit is left out of an update, for
            each sample anew; the others count 1/(1 - p) times. Metrics and predictions use all
            units.
        label_smoothing: s, from 0 to below 1: training uses the labels (1 - s) Y + s/k. Metrics
            use the labels themselves.
        class_weight: ``balanced``, for weights that make the classes count alike, or a mapping
            from names of classes to weights, 0 or more (1 for a class that it leaves out). They
            multiply the weights of samples that the data have, and are scaled so that the training
            split has mean weight 1. Cost and loss are then weighted, accuracies are not.

    Raises:
        InputError: naming the argument, its value and its range.

    Example::

        model = OneLayer(hidden=50, l2=0.01, seeds=[0, 1, 2])
        trainer = Trainer(max_steps=4800, callbacks=[TriangularLR(step_size=800, cycles=3)])
        trainer.fit(model, datamodule=CIFAR10DataModule())
    """

    l2: Tensor  # λ of each member (m,)
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        hidden: int = 0,
        l2: float | list[float] = 0.0,
        seeds: int | list[int] = 0,
        lr: float = USUAL_LR,
        init_std: float | None = None,
        fused: bool = True,
        cuda_graphs: bool = True,
        inputs: int = 3072,
        classes: int = 10,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        class_weight: str | dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.shapes = shapes_of(hidden, l2, seeds, inputs, classes)
        check_number("lr", lr)
        check_share("dropout", dropout)
        check_share("label_smoothing", label_smoothing)
        check_class_weight(class_weight)
        if dropout and not hidden:
            raise InputError(
                f"dropout is {dropout:g}, but the linear network has no hidden units to drop. "
                "Set dropout to 0, or hidden above 0."
            )
        if init_std is not None:
            check_number("init_std", init_std)
        l2s, seed_list = _as_list("l2", l2), _as_list("seeds", seeds)
        for value in l2s:
            check_number("l2", value)
        for value in seed_list:
            check_whole("seeds", value, at_least=0, at_most=LARGEST_SEED)
        members = [Member(float(λ), seed) for λ in l2s for seed in seed_list]
        if len(set(members)) < len(members):
            raise InputError(f"l2 and seeds must not repeat a value, not l2={l2}, seeds={seeds}.")
        self.save_hyperparameters()
        for name in [name for name, value in self.hparams.items() if not _is_plain(value)]:
            del self.hparams[name]  # an object that a subclass takes: a checkpoint cannot hold it
        self.hidden, self.inputs, self.outputs, self.lr = hidden, inputs, classes, lr
        self.classes = numbers(classes)  # names of the classes, once they are known
        self.columns: list[str] | None = None  # names of the features, if they have any
        self.fused, self.cuda_graphs = fused, cuda_graphs
        self.dropout, self.label_smoothing = dropout, label_smoothing
        self.class_weight = class_weight
        # Weight of each class (k,), once the training labels are known.
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)

        check_making(len(members), hidden, inputs, classes)
        start = initial_parameters([m.seed for m in members], hidden, inputs, classes, init_std)
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value.to(torch.get_default_dtype())))
        self.names = list(start)
        # Statistics of the training split: new samples are standardised without it.
        self.register_buffer("mean", torch.zeros(inputs, dtype=torch.float64))
        self.register_buffer("std", torch.ones(inputs, dtype=torch.float64))
        self.validation: Metrics | None = None  # of each member, measured last
        self.validated_at = -1  # the update after which that was
        self.learned_from = ["train"]  # splits that the cost is the mean over
        self.member: int | str = "best"  # whose predictions predict_step returns
        self.knows_statistics = False  # whether mean and std are those of training data
        self.data_state: dict[str, Any] | None = None  # of the data module, while in memory
        self.samples: dict[str, Any] = {}  # shape, kind, … of raw samples, if known
        self.origin: tuple[Path, int] | None = None  # checkpoint that was loaded, and its update
        self.further: dict[int, Measure] = {}  # of the second loader on, by its number
        self.set_members(members)

    def set_members(self, members: Sequence[Member]) -> None:
        """Set which networks these are, one for each index of the parameters' leading axis."""
        self.members = list(members)
        λ = torch.tensor([member.l2 for member in members], dtype=torch.float64)
        self.register_buffer("l2", λ, persistent=False)
        self.measured = self.new_measure()
        self.ensembles = EnsembleMeasure([*by_l2(λ.tolist()).values()], self.measured.classes)

    def new_measure(self) -> Measure:
        """Return an empty measure of the members, with balanced accuracy for class weights."""
        return Measure(len(self.members), 0 if self.class_weight is None else self.outputs)

    def __repr__(self) -> str:
        """Return the arguments that define the networks, without torchmetrics' states."""
        given: dict[str, Any] = {
            "hidden": self.hidden,
            "l2": _in_short([m.l2 for m in self.members]),
            "seeds": _in_short([m.seed for m in self.members]),
            "inputs": self.inputs,
            "classes": self.outputs,
            **({"dropout": self.dropout} if self.dropout else {}),
            **({"label_smoothing": self.label_smoothing} if self.label_smoothing else {}),
            **({} if self.class_weight is None else {"class_weight": self.class_weight}),
        }
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in given.items())})"

    def children(self) -> Iterator[nn.Module]:
        """Return the submodules, which move to a device with the module."""
        return iter(dict.fromkeys(m for m in self._modules.values() if m is not None))

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the parameters as modules: Lightning's model summary lists these."""
        for name in self.names:
            yield name, _Weights(getattr(self, name)).train(self.training)

    # ---- the network

    @property
    def weights(self) -> list[Tensor]:
        """The parameters in the order of formulas: W, b or W1, b1, W2, b2."""
        return [getattr(self, name) for name in self.names]

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters (m, …) as NumPy arrays, by name."""
        return {n: getattr(self, n).detach().cpu().numpy().copy() for n in self.names}

    def forward(self, X: Tensor) -> Tensor:
        """Return the logits (m, n, k) of standardised samples X (n, d), without dropout."""
        check_inputs(X, self.inputs)
        return formulas.logits(X, self.weights)

    def cost(
        self, X: Tensor, y: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        """Return the cost J (m,), differentiable with the analytic gradient.

        Differentiate its sum. Labels are smoothed by ``label_smoothing``.

        Args:
            X: standardised samples (n, d).
            y: labels (n,).
            mask: mask of dropout, see :meth:`dropout_mask`.
            weight: weights of the samples (n,), with mean 1 over the training split. Class weights
                multiply them.
        """
        smoothing, weight = self.label_smoothing, self.sample_weight(y, weight)
        n = None if weight is None else len(X)
        return autograd.cost(X, y, self.weights, self.l2, n, smoothing, mask, weight)

    def sample_weight(self, y: Tensor, weight: Tensor | None = None) -> Tensor | None:
        """Return the weights of samples (n,), times those of their classes; None for 1 each.

        Raises:
            InputError: the class weights depend on training labels that are not known yet.
        """
        if self.class_weight is None:
            return weight
        if self.class_weights is None:
            raise InputError(
                "model.class_weight needs the labels of the training split. Fit with a data module "
                "of onelayer, or call learn_class_weights(y) first."
            )
        of_class = self.class_weights[y]
        return of_class if weight is None else of_class * weight

    def learn_class_weights(self, y: Tensor, weight: Tensor | None = None) -> None:
        """Compute the weight of each class from the labels (n,) and weights of a training split.

        They are scaled so that the mean weight of its samples is 1.
        """
        found = learn_class_weights(self.class_weight, self.classes, y, weight)
        self.class_weights = found.to(self.weights[0])

    def dropout_mask(
        self, rows: int, update: int, part: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Tensor | None:
        """Return dropout's mask M (m, n, h) of an update; None without dropout.

        The arguments are those of :func:`onelayer.training.dropout.dropout_mask`.
        """
        if not self.dropout:
            return None
        seeds = [member.seed for member in self.members]
        W1 = self.weights[0]
        mask = dropout_mask(self.dropout, seeds, self.hidden, rows, update, part, share)
        return mask.to(W1.device, W1.dtype, non_blocking=True)

    @torch.no_grad()
    def evaluate(
        self, X: Features | SomeRows, y: Tensor, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return ``cost``, ``loss`` and ``accuracy`` (0 to 1) of each member over a split, (m,).

        With class weights also ``balanced_accuracy``. X, y and the samples' weights may lie on
        another device than the module, as they do after training on a GPU.
        """
        measure, y = self.new_measure().to(self.device), y.to(self.device)
        weight = self.sample_weight(y, None if weight is None else weight.to(self.device))
        measure.update(X.to(self.device), y, self.weights, weight)
        return self.figures(measure)

    @torch.no_grad()
    def evaluate_batches(self, batches: Iterable[Sequence[Any]]) -> dict[str, Tensor]:
        """Return what :meth:`evaluate` does, for batches X (n, d), y (n,) of any loader.

        A batch may have weights (n,) as its third item.

        Raises:
            InputError: a feature is not finite, a label is out of range, or there is no batch.
        """
        measure, W = self.new_measure().to(self.device), self.weights[0]
        for X, y, *others in batches:
            check_batch(X, y, classes=self.outputs)
            check_inputs(X, self.inputs)
            y, weight = y.to(W.device), others[0] if others else None
            weight = self.sample_weight(y, None if weight is None else weight.to(W))
            measure.update(X.to(W.device, W.dtype), y, self.weights, weight)
        if not measure.update_called:
            raise InputError("a loader gives no batch: there is nothing to measure.")
        return self.figures(measure)

    @torch.no_grad()
    def figures(self, measure: Measure) -> dict[str, Tensor]:
        """Return a measure's loss and accuracy, and the cost: loss plus penalty; (m,) each."""
        # torchmetrics makes a scalar of a result (1,)
        result = {name: value.reshape(-1) for name, value in measure.compute().items()}
        weights = [p.double() for p in self.weights]
        return {"cost": result["loss"] + formulas.penalty(weights, self.l2), **result}

    @torch.no_grad()
    def finite_members(self) -> Tensor:
        """Return which members have finite weights, bool (m,)."""
        return finite_members(self.weights)

    def choose(self, member: int | str = "best") -> Choice:
        """Select the members whose predictions are averaged, and describe them.

        Args:
            member: ``best`` for the members of the λ that is best on validation, ``all``, or the
                index of one member.

        Raises:
            InputError: there is no such member.
        """
        chosen = choose(member, self.members, self.validation)
        flipped = ", over each image and its mirror image" if self.ensembles.mirror else ""
        return chosen._replace(words=chosen.words + flipped)

    @torch.no_grad()
    def predict_proba(
        self, X: Tensor, member: int | str = "best", mirror: Shape | None = None
    ) -> Tensor:
        """Return class probabilities (n, k), averaged over the chosen members.

        They are computed in float64 and returned in the weights' dtype. Members that have diverged
        are ignored.

        Args:
            X: standardised samples (n, d).
            member: see :meth:`choose`.
            mirror: shape of an image, such as (3, 32, 32), to average over each image and the
                image flipped left to right.
        """
        check_inputs(X, self.inputs)
        mirror = mirror if mirror is None else check_image(mirror, self.inputs)
        chosen = self.choose(member).members
        weights = [p[chosen] for p in self.weights]
        return precise_probabilities(X, weights, mirror)

    def headline(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return one number for each metric (m,), which monitors find as ``val/accuracy`` etc.

        It is the mean over the seeds of the λ that is now best on validation, for the training and
        test splits too; over all members if nothing has been validated.
        """
        chosen = self.choose("best").members
        return mean_of_finite({name: value[chosen] for name, value in figures.items()})

    def validated(self, figures: dict[str, Tensor]) -> None:
        """Keep the metrics (m,) of the validation split, which decide the best λ."""
        self.validated_at = -1 if self._trainer is None else self._trainer.global_step
        self.validation = {name: figures[name].tolist() for name in quantities(figures)}

    # ---- training

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks of every run, except those that the trainer has already."""
        trainer: Any = self.trainer
        kinds = ALWAYS if trainer.barebones else (*ALWAYS, *MEASURING)
        return [kind() for kind in kinds if not any(isinstance(c, kind) for c in trainer.callbacks)]

    def overridden(self, names: Sequence[str]) -> list[str]:
        """Return those of the methods that a subclass, or the object itself, defines anew."""
        return [name for name in names if function_of(self, name) is not getattr(OneLayer, name)]

    def configure_optimizers(self) -> Optimizer:
        """Return plain SGD; the penalty is part of the gradient, so there is no weight_decay."""
        return SGD(self.parameters(), lr=self.lr)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the cost of a batch ``(X, y)``, summed over the members, for autograd."""
        X, y, weight = self._samples(batch)
        loader = None if self._trainer is None else self._trainer.train_dataloader
        if X.device.type == "cpu" and not isinstance(loader, ResidentLoader):
            check_finite(X)  # a ResidentLoader has; on a device it would wait for every batch
        if self._trainer is None:
            return self.batch_cost(X, y, batch_idx, weight=weight)
        if not self.dropout:  # torch.compile would compile anew for each number of an update
            return self.batch_cost(X, y, 0, weight=weight)
        # Batches whose gradients are accumulated make one update together.
        part = batch_idx % self._trainer.accumulate_grad_batches
        return self.batch_cost(X, y, self._trainer.global_step, part, weight)

    def _samples(self, batch: Any) -> Weighted:
        X, y, weight = samples_of(batch)
        if isinstance(X, Tensor) and X.ndim == 2 and X.shape[1] != self.inputs:
            raise InputError(
                f"the samples have {X.shape[1]} features, but the network was made for "
                f"{self.inputs}.\nMake it with OneLayer(inputs={X.shape[1]})."
            )
        return Weighted(X, y, weight)

    def batch_cost(
        self,
        X: Tensor,
        y: Tensor,
        update: int | None = None,
        part: int = 0,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return the sum over members of the cost J of a batch X (n, d), y (n,): a scalar.

        With several processes each has a part of the batch. DistributedDataParallel averages their
        gradients, so each part is multiplied by the number of processes.

        Args:
            X: the batch, or this process's part of it.
            y: its labels.
            update: the number of the update, which dropout's mask depends on; by default the
                trainer's.
            part: index of the batch within the update if gradients are accumulated.
            weight: weights of the samples (n,), see :meth:`cost`.
        """
        if self._forward_hooks or self._forward_pre_hooks:
            self(X)  # for torch's pruning and the like, which wait for a call of the module
        if update is None:
            update = 0 if self._trainer is None else self._trainer.global_step
        if processes() == 1:
            mask = self.dropout_mask(len(X), update, part)
            # A subclass's cost needs no argument for a mask or weights that there are not.
            given = {"mask": mask, "weight": weight}
            return self.cost(X, y, **{k: v for k, v in given.items() if v is not None}).sum()
        rows = samples_of_all(X)
        mask = self.dropout_mask(rows, update, part, (dist.get_rank(), processes()))
        n, smoothing = rows / processes(), self.label_smoothing
        weight = self.sample_weight(y, weight)
        return autograd.cost(X, y, self.weights, self.l2, n, smoothing, mask, weight).sum()

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the metrics that decide the best λ, and the splits learned from if not train."""
        checkpoint["validation"] = self.validation
        if self.learned_from != ["train"]:
            checkpoint["learned_from"] = self.learned_from
        if self.class_weights is not None:
            checkpoint["class_weights"] = self.class_weights.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another network's checkpoint; restore dtype, names and validation metrics.

        Lightning restores weights before it makes the module float64: they would be rounded.

        Raises:
            InputError: naming the argument and both values.
        """
        saved = checkpoint.get("hyper_parameters", {})
        # A subclass's own arguments may differ, such as a batch_size that is searched for.
        names = [n for n in signature(OneLayer).parameters if n in saved]
        here, there = (
            {name: of.get(name) for name in names if name not in IMPLEMENTATION}
            for of in (self.hparams, saved)
        )
        advice = "Use the run's own value, or start a new run."
        check_same("the checkpoint", here, there, advice, section="model")
        check_tensors(checkpoint["state_dict"], self.shapes)
        if self._fits():
            check_resumable(checkpoint)
        for name, parameter in zip(self.names, self.weights, strict=True):
            parameter.data = parameter.data.to(checkpoint["state_dict"][name].dtype)
        self.validation = checkpoint.get("validation")
        kept = checkpoint.get("class_weights")
        self.class_weights = None if kept is None else kept.to(self.weights[0])
        known = checkpoint.get("data_module") or {}
        data = SimpleNamespace(classes=known.get("classes"), columns=known.get("columns"))
        for what, own in names_of(data, self.outputs, self.inputs).items():
            setattr(self, what, own)
        self.learned_from = list(checkpoint.get("learned_from", ["train"]))
        state = checkpoint.get(str(known.get("class_path")).rpartition(".")[2])
        self.knows_statistics = isinstance(state, dict) and "mean" in state
        self.samples, self.data_state = _samples_of(state), None

    # ---- evaluation

    def on_validation_start(self) -> None:
        """Refuse data with other names or another standardisation than the network's."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            take_names(self)
        self._check_statistics()

    def on_test_start(self) -> None:
        """Refuse data with another standardisation than the network's."""
        self._check_statistics()

    def on_predict_start(self) -> None:
        """Refuse data with another standardisation than the network's."""
        self._check_statistics()

    def _check_statistics(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self._fits() or not self.knows_statistics or not isinstance(data, Standardised):
            return
        if not data.statistics.equal(Statistics(self.mean.cpu(), self.std.cpu())):
            raise InputError(
                f"{type(data).__name__} is standardised by its own mean and standard deviation, "
                "but the network was trained with others.\nUse a data module of the class that it "
                "was trained with."
            )

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics of its loader."""
        if batch_idx == 0 and dataloader_idx == 0:
            self.measured.reset()
            self.ensembles.reset()
            self.further = {}
        X, y, weight = self._samples(batch)
        autograd.check_shapes(X, y, self.weights)
        if X.device.type == "cpu":
            check_batch(X, y, classes=self.outputs)
        measure = self.measured
        if dataloader_idx:
            new = self.new_measure().to(self.device)
            measure = self.further.setdefault(dataloader_idx, new)
        weight = self.sample_weight(y, weight)
        measure.update(X, y, self.weights, weight)
        if self.ensembles.wanted and not self._fits() and not dataloader_idx:
            self.ensembles.update(X, y, self.weights, weight)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the best λ as ``val/cost`` and so on, see :meth:`headline`."""
        self._log_figures("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the λ that is best on validation as ``test/cost`` and so on."""
        self._log_figures("test")

    def _fits(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING

    def _log_figures(self, split: str) -> None:
        if self.trainer.barebones or not self.measured.update_called:
            return  # nothing may be logged, or a subclass measures in its own way
        # Results logs test metrics itself, at the run's last update.
        elsewhere = split == "test" and any(o.logs_test_figures for o in observers(self.trainer))
        figures = self.figures(self.measured)
        if split == "val" and not self.trainer.sanity_checking:
            self.validated(figures)
        for name, value in self.headline(figures).items():
            logger = False if elsewhere else None
            self.log(f"{split}/{name}", value, logger=logger, sync_dist=True)
        if self.further:
            warn_of_several(split)
        for number, measure in self.further.items():
            for name, value in self.headline(self.figures(measure)).items():
                key = f"{split}/{name}/dataloader_idx_{number}"  # Lightning's own name
                self.log(key, value, sync_dist=True, add_dataloader_idx=False)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return class probabilities P (n, k) of X or (X, y), and (names, P) of (X, names)."""
        X, *others = batch if isinstance(batch, tuple | list) and batch else [batch]
        X = X.flatten(1) if isinstance(X, Tensor) and X.ndim > 2 else X
        P = self.predict_proba(X, self.member, self.ensembles.mirror)
        if not P.isfinite().all():
            raise InputError("the networks' logits are not finite: their weights are too large.")
        named = others and isinstance(others[0], list) and isinstance(others[0][0], str)
        return (others[0], P) if named else P


class FromData(Callback):
    """Statistics and names that a OneLayer takes from its data, apart from overridable hooks.

    A trainer that goes on with another module loses the callbacks that OneLayer added.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the training split's statistics.

        Raises:
            InputError: samples or classes do not fit the network, or weights would be in half
                precision.
        """
        owner: Any = trainer
        if not isinstance(pl_module, OneLayer):
            added = (*ALWAYS, *MEASURING)
            owner.callbacks = [c for c in owner.callbacks if not isinstance(c, added)]
            return
        data = owner.datamodule
        # knows_classes first: isinstance of a protocol reads every attribute, and so the file.
        if getattr(data, "knows_classes", True) and isinstance(data, Splits):
            _check_size("classes", pl_module.outputs, len(data.classes))
        if trainer.precision in ("16-true", "bf16-true"):
            raise InputError(
                f"trainer.precision {trainer.precision} would round statistics and metrics "
                "too. Use bf16-mixed, 32-true or 64-true."
            )
        if stage == "fit" and isinstance(data, Standardised):
            _check_size("inputs", pl_module.inputs, len(data.statistics.mean))
            pl_module.mean.copy_(data.statistics.mean)
            pl_module.std.copy_(data.statistics.std)
            pl_module.knows_statistics, pl_module.origin = True, None
            teach = getattr(data, "teach", None)
            pl_module.data_state = teach() if teach else None
            state = (pl_module.data_state or {}).get(type(data).__qualname__)
            pl_module.samples = _samples_of(state) or {"shape": shape_of(data)}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the data module's class, and the names of classes and features."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            checkpoint |= known_of(data, cast(OneLayer, pl_module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over names; refuse networks that need more memory than there is.

        Raises:
            InputError: saying how much memory is needed and how much is free.
        """
        module, data = cast(OneLayer, pl_module), cast(Any, trainer).datamodule
        _log_schedule_and_data(trainer, module)
        setter = next((o for o in observers(trainer) if o.rate(0) is not None), None)
        if setter is not None and module.lr != USUAL_LR:
            rank_zero_warn(
                f"model.lr = {module.lr:g} has no effect: {type(setter).__name__} sets the rate of "
                "every update. Set its arguments, and leave lr out."
            )
        take_names(module)
        train, val = weighted(data, "train"), weighted(data, "val")
        if module.class_weight is not None and train:
            module.learn_class_weights(train.y, train.weight)
        rows = max((len(split.y) for split in (train, val) if split), default=1)
        m, W = len(module.members), module.weights[0]
        check_training(m, module.hidden, module.inputs, module.outputs, rows, W)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse data whose classes or columns have other names than the network's."""
        take_names(pl_module)

    on_predict_start = on_test_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn off a ResidentLoader's shuffling for overfit_batches, as Lightning does for others.

        Raises:
            InputError: the statistics of a checkpoint's data are not its network's.
        """
        loader, data = trainer.train_dataloader, trainer.datamodule  # type: ignore[attr-defined]
        if cast(Any, trainer).overfit_batches and isinstance(loader, ResidentLoader):
            loader.shuffle = False
        module = cast(OneLayer, pl_module)
        if not trainer.ckpt_path or not isinstance(data, Standardised):
            return
        if not data.statistics.equal(Statistics(module.mean.cpu(), module.std.cpu())):
            raise InputError("the checkpoint's network and its data have other statistics.")


ALWAYS: tuple[type[Callback], ...] = (FromData, Resume, Blocks)  # callbacks of every run
MEASURING: tuple[type[Callback], ...] = (Curves, TensorBoard, Divergence)  # unless barebones


def known_of(data: Any, model: OneLayer) -> dict[str, Any]:
    """Return what a checkpoint keeps of its data: the module's class, and names."""
    return {
        "data_module": {
            "class_path": f"{type(data).__module__}.{type(data).__qualname__}",
            **names_of(data, model.outputs, model.inputs),
        }
    }


def shapes_of(
    hidden: int = 0, l2: Any = 0.0, seeds: Any = 0, inputs: int = 3072, classes: int = 10
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a checkpoint: parameters (m, …), statistics (d,).

    Raises:
        InputError: a size is out of its range.
    """
    check_whole("hidden", hidden, at_least=0)
    check_whole("inputs", inputs, at_least=1)
    check_whole("classes", classes, at_least=2)
    m = len(_as_list("l2", l2)) * len(_as_list("seeds", seeds))
    shapes = parameter_shapes(hidden, inputs, classes).items()
    return {**{name: (m, *shape) for name, shape in shapes}, "mean": (inputs,), "std": (inputs,)}


def _samples_of(state: Any) -> dict[str, Any]:
    """Return how raw samples look, from the state of a data module; {} if it has no shape."""
    if not isinstance(state, dict) or "shape" not in state:
        return {}
    arguments = state.get("arguments") or {}
    return {
        "shape": tuple(state["shape"]),
        "kind": state.get("kind"),
        "dtype": state.get("dtype"),
        "standardise": arguments.get("standardise", "feature"),
        "dataset": state.get("dataset"),
        "digest": arguments.get("rows"),
        **({"backbone": state["backbone"]} if "backbone" in state else {}),
    }


class _Weights(nn.Module):
    """One parameter, as a line of Lightning's model summary."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights


def _log_schedule_and_data(trainer: Trainer, module: OneLayer) -> None:
    """Add the schedule's rates and the data to the logged hyperparameters."""
    logged = module.hparams_initial
    schedule = next((o for o in observers(trainer) if o.cycle), None)
    if schedule is not None:
        logged.pop("lr", None)
        logged |= schedule.state_dict()
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if data is not None:
        own = dict(data.hparams_initial)
        size = getattr(data, "batch_size", None)
        new = {"data": name_of(data), **({} if size is None else {"batch_size": size})}
        logged |= {name: value for name, value in new.items() if name not in own}
    module._hparams_initial = logged  # type: ignore[assignment]


def _check_size(name: str, here: int, there: int) -> None:
    if here != there:
        raise InputError(f"model.{name} is {here}, but the data have {there}.")


def _in_short(values: Sequence[Any]) -> str:
    """Return the distinct values as a list; the first, the last and the count if they are many."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return f"{distinct[0]:g}"
    if len(distinct) > 6:
        return f"[{distinct[0]:g}, …, {distinct[-1]:g}] ({len(distinct)} values)"
    return f"[{', '.join(f'{value:g}' for value in distinct)}]"


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, a string or None, or a list or dict of such values."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def _as_list(name: str, value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise InputError(f"{name} must be a number or a list of at least one, not {value!r}.")
    return values

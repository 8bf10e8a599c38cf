"""One network or many, with the hand-written gradient, as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from onelayer.core import autograd, formulas
from onelayer.core.checks import (
    LARGEST_SEED,
    MOST_UPDATES,
    check_inputs,
    check_number,
    check_same,
    check_share,
    check_whole,
)
from onelayer.core.errors import InputError
from onelayer.core.network import finite_members, initial_parameters, parameter_shapes
from onelayer.core.update import processes, samples_of_all
from onelayer.data.adapter import numbers, pair, warn_of_several
from onelayer.data.features import Features, SomeRows, Statistics
from onelayer.data.loader import Batch, ResidentLoader, check_batch, check_finite
from onelayer.data.split import Standardised
from onelayer.training.choice import Choice, Figures, Member, by_l2, choose
from onelayer.training.dropout import dropout_mask
from onelayer.training.ensembles import EnsembleMeasure, Shape, check_image, mean_probabilities
from onelayer.training.measure import QUANTITIES, Measure, mean_of_finite
from onelayer.training.memory import check_making
from onelayer.training.names import names_of, take_names
from onelayer.training.observer import observers
from onelayer.training.schema import check_optimizer, check_resumable, check_tensors

USUAL_LR = 0.01
WAYS = ("fused", "cuda_graphs")
"""Arguments that say how an update is made, not which: a run may be resumed with others."""


class Weights(nn.Module):
    """One parameter of a population, as a line of Lightning's model summary."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights


def _in_short(values: Sequence[Any]) -> str:
    """Return different values as a list; of many the first, the last and how many there are."""
    listed = list(dict.fromkeys(values))
    if len(listed) == 1:
        return f"{listed[0]:g}"
    if len(listed) > 6:
        return f"[{listed[0]:g}, …, {listed[-1]:g}] ({len(listed)} values)"
    return f"[{', '.join(f'{value:g}' for value in listed)}]"


class Population(LightningModule):
    """The networks of :class:`onelayer.training.module.OneLayer`, and the steps that train them."""

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
        snapshots: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.shapes = shapes_of(hidden, l2, seeds, inputs, classes, snapshots)
        check_number("lr", lr)
        check_share("dropout", dropout)
        check_share("label_smoothing", label_smoothing)
        if dropout and not hidden:
            raise InputError(
                f"dropout = {dropout:g} acts on the hidden layer, and hidden is 0: the linear "
                "network has none. Set dropout to 0, or hidden above 0."
            )
        if init_std is not None:
            check_number("init_std", init_std)
        l2s, seed_list = _as_list("l2", l2), _as_list("seeds", seeds)
        for value in l2s:
            check_number("l2", value)
        for value in seed_list:
            check_whole("seeds", value, at_least=0, at_most=LARGEST_SEED)
        self.save_hyperparameters()
        for name in [name for name, value in self.hparams.items() if not _is_plain(value)]:
            # An object that a subclass takes: no checkpoint with it loads, or none can be saved.
            del self.hparams[name]
        self.hidden, self.inputs, self.outputs, self.lr = hidden, inputs, classes, lr
        self.classes = numbers(classes)  # their names, once they are known
        self.columns: list[str] | None = None  # names of the features, if they have any
        self.fused, self.cuda_graphs = fused, cuda_graphs
        self.dropout, self.label_smoothing = dropout, label_smoothing
        steps = [None] if snapshots is None else _as_list("snapshots", snapshots)
        self.members = [
            Member(float(value), seed, step)
            for step in steps
            for value in l2s
            for seed in seed_list
        ]
        if len(set(self.members)) < len(self.members):
            given = f"l2={l2}, seeds={seeds}" + (f", snapshots={snapshots}" if snapshots else "")
            raise InputError(f"l2 and seeds must not repeat a value, not {given}.")

        check_making(len(self.members), hidden, inputs, classes)
        drawn = [member.seed for member in self.members]
        start = initial_parameters(drawn, hidden, inputs, classes, init_std)
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value.to(torch.get_default_dtype())))
        self.names = list(parameter_shapes(hidden, inputs, classes))
        # Of the pixels of the training split, so that new images can be classified without it.
        self.register_buffer("mean", torch.zeros(inputs, dtype=torch.float64))
        self.register_buffer("std", torch.ones(inputs, dtype=torch.float64))
        self.measured = Measure(len(self.members))
        self.ensembles = EnsembleMeasure([*by_l2([m.l2 for m in self.members]).values()])
        self.validation: Figures | None = None  # of each member, measured last
        self.validated_at = -1  # the update after which that was
        self.learned_from = ["train"]  # the splits that its cost is the mean over
        self.member: int | str = "best"  # which of them predict_step asks
        self.knows_statistics = False  # whether mean and std are those of data it learned from
        self.data_state: dict[str, Any] | None = None  # of the data module, while in memory
        self.further: dict[int, Measure] = {}  # of the second loader on, by its number
        λ = torch.tensor([member.l2 for member in self.members], dtype=torch.float64)
        self.register_buffer("l2", λ, persistent=False)

    def __repr__(self) -> str:
        """The arguments that tell what the networks are; torchmetrics' states are none of them."""
        steps = [m.step for m in self.members if m.step is not None]
        given: dict[str, Any] = {
            "hidden": self.hidden,
            "l2": _in_short([m.l2 for m in self.members]),
            "seeds": _in_short([m.seed for m in self.members]),
            "inputs": self.inputs,
            "classes": self.outputs,
            **({"dropout": self.dropout} if self.dropout else {}),
            **({"label_smoothing": self.label_smoothing} if self.label_smoothing else {}),
            **({"snapshots": _in_short(steps)} if steps else {}),
        }
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in given.items())})"

    def children(self) -> Iterator[nn.Module]:
        """Return the submodules, as of any module: those that move to a device with it."""
        return iter(dict.fromkeys(m for m in self._modules.values() if m is not None))

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the parameters, a module each: Lightning's model summary lists these."""
        for name in self.names:
            yield name, Weights(getattr(self, name)).train(self.training)

    # ---- the network

    @property
    def weights(self) -> list[Tensor]:
        """The parameters in the order of formulas: W, b or W1, b1, W2, b2."""
        return [getattr(self, name) for name in self.names]

    def forward(self, X: Tensor) -> Tensor:
        """Logits (m, n, k) of standardised images X (n, d); dropout takes no part."""
        check_inputs(X, self.inputs)
        return formulas.logits(X, self.weights)

    def cost(self, X: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Cost J (m,), differentiable with the analytic gradient. Differentiate its sum.

        The labels are smoothed by ``label_smoothing``; ``mask`` is that of dropout, see
        :meth:`dropout_mask`.
        """
        smoothing = self.label_smoothing
        return autograd.cost(X, y, self.weights, self.l2, None, smoothing, mask)

    def dropout_mask(
        self, rows: int, update: int, part: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Tensor | None:
        """Dropout's mask M (m, n, h) of an update, float32 or the weights' own; None without.

        The arguments are those of :func:`onelayer.training.dropout.dropout_mask`.
        """
        if not self.dropout:
            return None
        seeds = [member.seed for member in self.members]
        W1 = self.weights[0]
        mask = dropout_mask(self.dropout, seeds, self.hidden, rows, update, part, share)
        return mask.to(W1.device, W1.dtype, non_blocking=True)

    @torch.no_grad()
    def evaluate(self, X: Features | SomeRows, y: Tensor) -> dict[str, Tensor]:
        """``cost``, ``loss``, ``accuracy`` (0 to 1) of each member over a split, (m,) each.

        Like :meth:`predict_proba` wherever X and y lie: after training on a GPU the module is in
        host memory, the data are not.
        """
        measure = Measure(len(self.members)).to(self.device)
        measure.update(X.to(self.device), y.to(self.device), self.weights)
        return self.figures(measure)

    @torch.no_grad()
    def evaluate_batches(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """What :meth:`evaluate` gives, of batches X (n, d), y (n,) as any loader gives them.

        Raises:
            InputError: features that are not finite, labels that are none, no batch at all.
        """
        measure, W = Measure(len(self.members)).to(self.device), self.weights[0]
        for X, y in batches:
            check_batch(X, y, classes=self.outputs)
            check_inputs(X, self.inputs)
            measure.update(X.to(W.device, W.dtype), y.to(W.device), self.weights)
        if not measure.update_called:
            raise InputError("a loader gives no batch: there is nothing to measure.")
        return self.figures(measure)

    @torch.no_grad()
    def figures(self, measure: Measure) -> dict[str, Tensor]:
        """A measure's loss and accuracy, and the cost: loss plus the penalty."""
        # torchmetrics makes a scalar of a result (1,)
        result = {name: value.reshape(-1) for name, value in measure.compute().items()}
        weights = [p.double() for p in self.weights]
        return {"cost": result["loss"] + formulas.penalty(weights, self.l2), **result}

    @torch.no_grad()
    def finite_members(self) -> Tensor:
        """Which members have finite weights, bool (m,)."""
        return finite_members(self.weights)

    def choose(self, member: int | str = "best") -> Choice:
        """The members that answer for ``member``, and in words which they are.

        Args:
            member: best for those of the λ that is best on validation, whose mean is the answer;
                all for the mean of all; or the number of one.

        Raises:
            InputError: there is no such member.
        """
        chosen = choose(member, self.members, self.validation)
        mirror = ", over each image and its mirror image" if self.ensembles.mirror else ""
        return chosen._replace(words=chosen.words + mirror)

    @torch.no_grad()
    def predict_proba(
        self, X: Tensor, member: int | str = "best", mirror: Shape | None = None
    ) -> Tensor:
        """Class probabilities (n, k) of standardised images, by the members that were chosen.

        Of several it is the mean. Members that have diverged know none and are left out.

        Args:
            X: standardised images (n, d).
            member: as :meth:`choose` takes it.
            mirror: for the mean over each image and its mirror image, left and right exchanged:
                what shape images have, such as (3, 32, 32).
        """
        check_inputs(X, self.inputs)
        mirror = mirror if mirror is None else check_image(mirror, self.inputs)
        chosen = self.choose(member).members
        weights = [p[chosen] for p in self.weights]
        return mean_probabilities(X.to(self.device), weights, mirror)

    def headline(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """One number for each figure (m,): what monitors see as ``val/accuracy`` and the like.

        It is the mean over the seeds of the λ that is now the best on validation, for the training
        and test splits, too; over all members where nothing has been validated.
        """
        chosen = self.choose("best").members
        return mean_of_finite({name: value[chosen] for name, value in figures.items()})

    def validated(self, figures: dict[str, Tensor]) -> None:
        """Keep the figures (m,) of the validation split, by which the best λ is told."""
        self.validated_at = -1 if self._trainer is None else self._trainer.global_step
        self.validation = {name: figures[name].tolist() for name in QUANTITIES}

    # ---- training

    def configure_optimizers(self) -> Optimizer:
        """Plain SGD; the penalty is part of the gradient, so no weight_decay."""
        return SGD(self.parameters(), lr=self.lr)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The cost of a batch ``(X, y)``, summed over the members, for autograd."""
        X, y = self._pair(batch)
        loader = None if self._trainer is None else self._trainer.train_dataloader
        if X.device.type == "cpu" and not isinstance(loader, ResidentLoader):
            check_finite(X)  # a ResidentLoader has; on a device it would wait for every batch
        if self._trainer is None:
            return self.batch_cost(X, y, batch_idx)
        # Batches whose gradients are accumulated make one update together.
        if not self.dropout:  # torch.compile would compile anew for each number of an update
            return self.batch_cost(X, y, 0)
        part = batch_idx % self._trainer.accumulate_grad_batches
        return self.batch_cost(X, y, self._trainer.global_step, part)

    def _pair(self, batch: Any) -> Batch:
        X, y = pair(batch)
        if isinstance(X, Tensor) and X.ndim == 2 and X.shape[1] != self.inputs:
            width = X.shape[1]
            raise InputError(
                f"an input of width {width} needs weights (m, out, {width}), but the network was "
                f"made for (m, out, {self.inputs}).\nIts inputs must be the number of features: "
                f"OneLayer(inputs={width})."
            )
        return X, y

    def batch_cost(self, X: Tensor, y: Tensor, update: int | None = None, part: int = 0) -> Tensor:
        """The sum over members of the cost J of a batch X (n, d), y (n,): a scalar.

        Of several processes each has a share of the batch. DistributedDataParallel averages their
        gradients, so each share counts as many times as there are processes.

        Args:
            X: the batch, or this process's share of it.
            y: its labels.
            update: the number of the update, which dropout's mask depends on; by default the
                trainer's.
            part: of the update, where gradients are accumulated.
        """
        if self._forward_hooks or self._forward_pre_hooks:
            self(X)  # for torch's pruning and the like, which wait for a call of the module
        if update is None:
            update = 0 if self._trainer is None else self._trainer.global_step
        if processes() == 1:
            mask = self.dropout_mask(len(X), update, part)
            # A subclass's cost need not know of masks where it has none.
            return (self.cost(X, y) if mask is None else self.cost(X, y, mask)).sum()
        rows = samples_of_all(X)
        mask = self.dropout_mask(rows, update, part, (dist.get_rank(), processes()))
        n, smoothing = rows / processes(), self.label_smoothing
        return autograd.cost(X, y, self.weights, self.l2, n, smoothing, mask).sum()

    # ---- hooks

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what tells the best λ, and what was learned from where that is more than usual."""
        checkpoint["validation"] = self.validation
        if self.learned_from != ["train"]:
            checkpoint["learned_from"] = self.learned_from

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another network's checkpoint; take on its precision and its best λ.

        Lightning restores weights before it makes the module float64: they would be rounded.

        Raises:
            InputError: naming the argument and both values.
        """
        saved = checkpoint.get("hyper_parameters", {})
        # A subclass's own arguments are its own affair, such as a batch_size that is searched for.
        names = [n for n in signature(Population).parameters if n in saved and n not in WAYS]
        here, there = ({name: of.get(name) for name in names} for of in (self.hparams, saved))
        advice = "Use the run's own value, or start a new run."
        check_same("the checkpoint", here, there, advice, section="model")
        check_tensors(checkpoint["state_dict"], self.shapes)
        if self._fits():
            check_resumable(checkpoint)
            if getattr(self.configure_optimizers, "__func__", None) is _PLAIN_SGD:
                states = checkpoint["optimizer_states"]
                check_optimizer(states, self.configure_optimizers().state_dict())
        for name, parameter in zip(self.names, self.weights, strict=True):
            parameter.data = parameter.data.to(checkpoint["state_dict"][name].dtype)
        self.validation = _figures_of(checkpoint, len(self.members))
        known = checkpoint.get("data_module")
        known = known if isinstance(known, dict) else {}
        data = SimpleNamespace(classes=known.get("classes"), columns=known.get("columns"))
        for what, names in names_of(data, self.outputs, self.inputs).items():
            setattr(self, what, names)
        self.learned_from = _splits_of(checkpoint)
        self.knows_statistics, self.data_state = _has_statistics(checkpoint), None

    def on_validation_start(self) -> None:
        """Refuse data with other names or another standardisation than the network's."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            take_names(self)
        self._check_statistics()

    def on_test_start(self) -> None:
        """Refuse data that are standardised otherwise than those that were learned from."""
        self._check_statistics()

    def on_predict_start(self) -> None:
        """Refuse data that are standardised otherwise than those that were learned from."""
        self._check_statistics()

    def _check_statistics(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self._fits() or not self.knows_statistics or not isinstance(data, Standardised):
            return
        if not data.statistics.equal(Statistics(self.mean.cpu(), self.std.cpu())):
            raise InputError(
                f"{type(data).__name__} is standardised by its own mean and standard deviation, "
                "but the network learned with others.\nUse a data module of the class that it "
                "was trained with."
            )

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the figures, of several loaders to those of its own."""
        if batch_idx == 0 and dataloader_idx == 0:
            self.measured.reset()
            self.ensembles.reset()
            self.further = {}
        X, y = self._pair(batch)
        autograd.check_shapes(X, y, self.weights)
        if X.device.type == "cpu":
            check_batch(X, y, classes=self.outputs)
        measure = self.measured
        if dataloader_idx:
            new = Measure(len(self.members)).to(self.device)
            measure = self.further.setdefault(dataloader_idx, new)
        measure.update(X, y, self.weights)
        if self.ensembles.wanted and not self._fits() and not dataloader_idx:
            self.ensembles.update(X, y, self.weights)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the best λ as ``val/cost`` and so on, see :meth:`headline`."""
        self._log_figures("val")

    def on_test_epoch_end(self) -> None:
        """Log those of the λ that is best on validation as ``test/cost`` and so on."""
        self._log_figures("test")

    def _fits(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING

    def _log_figures(self, split: str) -> None:
        if self.trainer.barebones or not self.measured.update_called:
            return  # nothing may be logged, or a subclass measures in its own way
        # Results writes the end of a run as a whole, whatever kills came before.
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
                # as Lightning calls the figures of one loader of several
                key = f"{split}/{name}/dataloader_idx_{number}"
                self.log(key, value, sync_dist=True, add_dataloader_idx=False)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Class probabilities (n, k) of a batch X or (X, y); with the names, of (X, names)."""
        X, *others = batch if isinstance(batch, tuple | list) and batch else [batch]
        X = X.flatten(1) if isinstance(X, Tensor) and X.ndim > 2 else X
        P = self.predict_proba(X, self.member, self.ensembles.mirror)
        if not P.isfinite().all():
            raise InputError("the networks' logits are not finite: their weights are too large.")
        named = others and isinstance(others[0], list) and isinstance(others[0][0], str)
        return (others[0], P) if named else P


_PLAIN_SGD = Population.configure_optimizers


def shapes_of(
    hidden: int = 0,
    l2: Any = 0.0,
    seeds: Any = 0,
    inputs: int = 3072,
    classes: int = 10,
    snapshots: Any = None,
) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor in the checkpoint of such a population: (m, …), and (d,) of statistics.

    Raises:
        InputError: a size out of its range.
    """
    check_whole("hidden", hidden, at_least=0)
    check_whole("inputs", inputs, at_least=1)
    check_whole("classes", classes, at_least=2)
    m = len(_as_list("l2", l2)) * len(_as_list("seeds", seeds))
    if snapshots is not None:
        for step in (steps := _as_list("snapshots", snapshots)):
            check_whole("snapshots", step, at_least=1, at_most=MOST_UPDATES)
        m *= len(steps)
    shapes = parameter_shapes(hidden, inputs, classes).items()
    return {**{name: (m, *shape) for name, shape in shapes}, "mean": (inputs,), "std": (inputs,)}


def _figures_of(checkpoint: dict[str, Any], members: int) -> Figures | None:
    """The figures on validation that a checkpoint keeps of each member; None where it has none.

    Raises:
        InputError: they are not the figures of these members.
    """
    kept = checkpoint.get("validation")
    if kept is None:
        return None
    fits = isinstance(kept, dict) and all(
        isinstance(kept.get(name), list)
        and len(kept[name]) == members
        and all(isinstance(value, float) for value in kept[name])
        for name in QUANTITIES
    )
    if not fits:
        raise InputError("the checkpoint's figures on validation are not those of its networks.")
    return cast(Figures, kept)


def _has_statistics(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint has the mean and standard deviation of a data module."""
    saved = checkpoint.get("data_module")
    name = str(saved.get("class_path")) if isinstance(saved, dict) else ""
    state = checkpoint.get(name.rpartition(".")[2])
    return isinstance(state, dict) and "mean" in state


def _splits_of(checkpoint: dict[str, Any]) -> list[str]:
    splits = checkpoint.get("learned_from", ["train"])
    if splits not in (["train"], ["train", "val"]):
        raise InputError(f"the checkpoint's learned_from is {str(splits)[:40]}: it was changed.")
    return list(splits)


def _is_plain(value: Any) -> bool:
    """Whether a value is a number or a word, or a list or dict of such, as in configs."""
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

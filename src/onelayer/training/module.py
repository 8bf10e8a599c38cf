"""OneLayer: a population with its callbacks, and the way to it from a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.adapter import name_of
from onelayer.data.features import Statistics
from onelayer.data.loader import ResidentLoader
from onelayer.data.split import Splits, Standardised
from onelayer.training.blocks import Blocks
from onelayer.training.checkpoint import read_run
from onelayer.training.curves import Curves
from onelayer.training.divergence import Divergence
from onelayer.training.memory import check_training
from onelayer.training.names import names_of, take_names
from onelayer.training.observer import observers
from onelayer.training.population import Population, shapes_of
from onelayer.training.resume import Resume
from onelayer.training.schema import check_tensors
from onelayer.training.tensorboard import TensorBoard


class OneLayer(Population):
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
        fused: update by one GEMM per layer, in blocks of updates, where nothing that is there
            could tell the difference, instead of by
            autograd.Function and optimizer.step(). The same formulas, and the same results up to
            rounding.
        cuda_graphs: on a GPU, launch a fused update as a whole (a CUDA graph) instead of kernel by
            kernel. The same formulas once more; nothing changes on a CPU.
        inputs: d, pixels of an image.
        classes: k. The attribute of that name is a list: the names of the classes, as the data or
            the checkpoint have them, else "0", "1", …; ``outputs`` is k, and ``columns`` the names
            of the features, or None.
        dropout: probability p, from 0 to below 1, that a hidden unit is left out of an update, for
            each row anew; the others count 1/(1 - p) times. Measurements and predictions are by
            all units.
        label_smoothing: s, from 0 to below 1: training's labels are (1 - s) Y + s/k. The measured
            loss and cost are those of the labels themselves.
        snapshots: of a checkpoint with networks at the ends of cycles, the updates after which they
            were taken (:class:`~onelayer.training.snapshots.Snapshots`); a training has none.

    Raises:
        InputError: naming the argument, its value and its range.

    Example::

        model = OneLayer(hidden=50, l2=0.01, seeds=[0, 1, 2])
        trainer = Trainer(max_steps=4800, callbacks=[TriangularLR(step_size=800, cycles=3)])
        trainer.fit(model, datamodule=CIFAR10DataModule())
    """

    def configure_callbacks(self) -> list[Callback]:
        """Return what every training has, unless the trainer has its own."""
        trainer: Any = self.trainer
        kinds: tuple[type[Callback], ...] = (FromData, Resume, Blocks)
        if not trainer.barebones:
            kinds += (Curves, TensorBoard, Divergence)
        return [kind() for kind in kinds if not any(isinstance(c, kind) for c in trainer.callbacks)]


class FromData(Callback):
    """What a OneLayer takes from the data module, apart from hooks that subclasses override."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the training split's statistics.

        Raises:
            InputError: for images or classes that do not fit the network, or for weights in half
                precision.
        """
        if not isinstance(pl_module, OneLayer):
            return  # a trainer keeps what OneLayer gave it for the next module
        data = trainer.datamodule  # type: ignore[attr-defined]
        # Where they are not known yet, they will be those of the checkpoint. Asked first: whether
        # something is a Splits is asked of its very attributes, which would read a file.
        if getattr(data, "knows_classes", True) and isinstance(data, Splits):
            _check_size("classes", pl_module.outputs, len(data.classes))
        if trainer.precision in ("16-true", "bf16-true"):
            raise InputError(
                f"trainer.precision {trainer.precision} would round statistics and figures "
                "too: use bf16-mixed, 32-true or 64-true."
            )
        if stage == "fit" and pl_module.hparams.get("snapshots"):
            raise InputError("model.snapshots is of networks that were trained: leave it out.")
        if stage == "fit" and isinstance(data, Standardised):
            _check_size("inputs", pl_module.inputs, len(data.statistics.mean))
            pl_module.mean.copy_(data.statistics.mean)
            pl_module.std.copy_(data.statistics.std)
            pl_module.knows_statistics = True
            teach = getattr(data, "teach", None)
            pl_module.data_state = teach() if teach else None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep which data module it was, and its classes' names: predictions are told by them."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and isinstance(pl_module, OneLayer):
            checkpoint |= known_of(data, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what there is no memory for.

        Raises:
            InputError: saying how much is needed and how much is free.
        """
        if isinstance(pl_module, OneLayer):
            _tell_loggers(trainer, pl_module)
            data, size = trainer.datamodule, pl_module  # type: ignore[attr-defined]
            take_names(pl_module)
            both = (data.tensors("train"), data.tensors("val")) if isinstance(data, Splits) else ()
            rows = max((len(split[1]) for split in both if split), default=1)
            check_training(
                len(size.members), size.hidden, size.inputs, size.outputs, rows, size.weights[0]
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse data whose classes or columns have other names than the network's."""
        if isinstance(pl_module, OneLayer):
            take_names(pl_module)

    on_predict_start = on_test_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn off a ResidentLoader's shuffling for overfit_batches, as Lightning does others'.

        Raises:
            InputError: the statistics of a checkpoint's data are not its network's.
        """
        loader, data = trainer.train_dataloader, trainer.datamodule  # type: ignore[attr-defined]
        if cast(Any, trainer).overfit_batches and isinstance(loader, ResidentLoader):
            loader.shuffle = False
        if not trainer.ckpt_path or not isinstance(pl_module, OneLayer):
            return
        if isinstance(data, Standardised) and not data.statistics.equal(
            Statistics(pl_module.mean.cpu(), pl_module.std.cpu())
        ):
            raise InputError("the checkpoint's network and its data have other statistics.")


def _tell_loggers(trainer: Trainer, module: OneLayer) -> None:
    """Let loggers have the schedule's rates and the data, in place of a rate without effect."""
    told = module.hparams_initial
    schedule = next((o for o in observers(trainer) if o.cycle), None)
    if schedule is not None:
        told.pop("lr", None)
        told |= schedule.state_dict()
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if data is not None:
        own = dict(data.hparams_initial)
        size = getattr(data, "batch_size", None)
        new = {"data": name_of(data), **({} if size is None else {"batch_size": size})}
        told |= {name: value for name, value in new.items() if name not in own}
    module._hparams_initial = told  # type: ignore[assignment]


def known_of(data: Any, model: Population) -> dict[str, Any]:
    """Return what a checkpoint keeps of its data: the module's class, and names."""
    return {
        "data_module": {
            "class_path": f"{type(data).__module__}.{type(data).__qualname__}",
            **names_of(data, model.outputs, model.inputs),
        }
    }


def checkpoint_of(model: OneLayer, data: Any, step: int = 0) -> dict[str, Any]:
    """An ordinary checkpoint of networks that no trainer holds, after ``step`` updates.

    Args:
        model: the networks.
        data: the data module that they learned from, or None.
        step: updates.
    """
    content = {
        "state_dict": {name: value.cpu() for name, value in model.state_dict().items()},
        "hyper_parameters": dict(model.hparams),
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": version("lightning"),
        "callbacks": {},
    }
    if data is not None:
        content |= known_of(data, model)
        if state := data.state_dict():
            content[type(data).__qualname__] = state
        if data.hparams:
            content[data.CHECKPOINT_HYPER_PARAMS_KEY] = dict(data.hparams)
    model.on_save_checkpoint(content)
    return content


def snapshots_of(module: Population, steps: list[int], parameters: Sequence[Tensor]) -> OneLayer:
    """The networks of a training as they were after some updates.

    Args:
        module: the networks as they are.
        steps: the updates.
        parameters: those after the first of them, after the second, …: (c m, …) each.
    """
    given = _those_of(OneLayer, dict(module.hparams))
    network = OneLayer(**{**given, "snapshots": steps})
    for own, value in zip(network.weights, parameters, strict=True):
        own.data = value
    network.mean.copy_(module.mean)
    network.std.copy_(module.std)
    network.learned_from = module.learned_from
    network.classes, network.columns = module.classes, module.columns
    network.ensembles.mirror = module.ensembles.mirror
    return network.to(module.device).eval()


def _check_size(name: str, here: int, there: int) -> None:
    if here != there:
        raise InputError(f"model.{name} is {here}, but the data have {there}.")


def load_network(path: str | Path) -> OneLayer:
    """Load the networks of a checkpoint to host memory: all members, with the data's statistics.

    ``classes`` are the names of the classes, ``columns`` those of the features, or None.

    Raises:
        InputError: as :func:`read_run`, and for the checkpoint of another model.
    """
    return network_of(read_run(path), path)


def network_of(content: dict[str, Any], path: str | Path) -> OneLayer:
    """:func:`load_network` of what has been read from ``path`` already."""
    given = content.get("hyper_parameters", {})
    try:
        # Before a network is made: its sizes may be lies.
        check_tensors(content["state_dict"], shapes_of(**_those_of(shapes_of, given)))
        model = OneLayer(**_those_of(OneLayer, given))
        model.on_load_checkpoint(content)
        model.load_state_dict(content["state_dict"])
    except (InputError, RuntimeError) as error:
        reason = "\n".join(line.strip() for line in str(error).splitlines()[:3])
        raise InputError(
            f"{path} is no checkpoint of OneLayer: {reason}\nName one that onelayer fit wrote."
        ) from error
    return model.eval()


def _those_of(function: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a function knows."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in given.items() if name in known}

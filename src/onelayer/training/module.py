"""OneLayer: a population with its callbacks, and the way to it from a checkpoint."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from onelayer.core.errors import InputError
from onelayer.data.loader import ResidentLoader
from onelayer.training.blocks import Blocks
from onelayer.training.checkpoint import read_run
from onelayer.training.curves import Curves
from onelayer.training.divergence import Divergence
from onelayer.training.population import Population
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
            could tell the difference (:mod:`onelayer.training.blocks`), instead of by
            autograd.Function and optimizer.step(). The same formulas, and the same results up to
            rounding.
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

    def configure_callbacks(self) -> list[Callback]:
        """Blocks, and Curves with who draws and who judges them, unless the trainer has its own."""
        trainer: Any = self.trainer
        kinds: tuple[type[Callback], ...] = (FromData, Blocks)
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
        data: Any = getattr(trainer, "datamodule", None)
        module = cast(Any, pl_module)
        for name, there in (("inputs", "input_size"), ("classes", "num_classes")):
            if getattr(module, name) != getattr(data, there, getattr(module, name)):
                raise InputError(
                    f"model.{name} is {getattr(module, name)}, but the data have "
                    f"{getattr(data, there)}."
                )
        if trainer.precision in ("16-true", "bf16-true"):
            raise InputError(
                f"trainer.precision {trainer.precision} would round statistics and figures "
                "too: use bf16-mixed, 32-true or 64-true."
            )
        if stage == "fit" and hasattr(data, "statistics"):
            module.mean.copy_(data.statistics.mean)
            module.std.copy_(data.statistics.std)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn off a ResidentLoader's shuffling for overfit_batches, as Lightning does others'."""
        loader = trainer.train_dataloader
        if cast(Any, trainer).overfit_batches and isinstance(loader, ResidentLoader):
            loader.shuffle = False


def load_network(path: str | Path) -> OneLayer:
    """The networks of a checkpoint, in host memory: all members, with the data's statistics.

    Raises:
        InputError: as :func:`read_run`, and for the checkpoint of another model.
    """
    return network_of(read_run(path), path)


def network_of(content: dict[str, Any], path: str | Path) -> OneLayer:
    """:func:`load_network` of what has been read from ``path`` already."""
    known = inspect.signature(OneLayer).parameters
    given = content.get("hyper_parameters", {}).items()
    try:
        model = OneLayer(**{name: value for name, value in given if name in known})
        model.on_load_checkpoint(content)
        model.load_state_dict(content["state_dict"])
    except (TypeError, RuntimeError, KeyError, AttributeError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3]) or error
        raise InputError(
            f"{path} is of another network than OneLayer: {reason}\n"
            "Name a checkpoint that onelayer fit wrote."
        ) from error
    return model.eval()

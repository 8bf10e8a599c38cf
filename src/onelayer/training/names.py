"""Names of classes and columns: a network has those of the data that it learned from."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from onelayer.data.adapter import class_names, column_names, name_of, numbers
from onelayer.data.naming import check_order


def names_of(data: Any, classes: int, inputs: int) -> dict[str, Any]:
    """Return a data module's names of its classes and of its columns, as checkpoints keep them."""
    return {"classes": class_names(data, classes), "columns": column_names(data, inputs)}


def take_names(module: Any) -> None:
    """Give a network the names of its data, or compare them with those that it has.

    Raises:
        InputError: the network was trained on data with other names, or in another order.
    """
    trainer = module.trainer
    data = trainer.datamodule
    if not getattr(data, "knows_classes", True):
        return
    begins = trainer.state.fn == TrainerFn.FITTING and not trainer.ckpt_path
    unnamed = {"classes": numbers(module.outputs), "columns": None}
    for what, names in names_of(data, module.outputs, module.inputs).items():
        own = getattr(module, what)
        if begins or own == unnamed[what]:
            setattr(module, what, names)
        elif names != unnamed[what]:
            check_order(names, own, what, name_of(data), "the network")

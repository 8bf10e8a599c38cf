"""Checks of a checkpoint's content: missing keys, shapes, finite weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from onelayer.core.checks import check_dense
from onelayer.core.errors import InputError
from onelayer.core.network import finite_members
from onelayer.data.features import Statistics

NEEDED = (  # by Lightning, to resume
    "loops", "callbacks", "optimizer_states", "lr_schedulers", "epoch", "global_step",
    "pytorch-lightning_version",
)  # fmt: skip
PROGRESS = ("epoch_progress", "epoch_loop.batch_progress")  # of loops.fit_loop


def check_resumable(content: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` unless a checkpoint has what a run needs to be resumed."""
    missing = [name for name in NEEDED if name not in content]
    fit_loop = content.get("loops", {}).get("fit_loop", {})
    missing += [f"loops.fit_loop.{name}" for name in PROGRESS if name not in fit_loop]
    if missing:
        raise InputError(
            f"the checkpoint has no {missing[0]}: a run cannot be resumed from it.\n"
            "Choose a complete checkpoint, not one of weights alone."
        )


def check_tensors(state_dict: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise :class:`InputError` unless a network's tensors are there, with these shapes.

    At least one member must have finite weights. The mean must be finite, the standard deviation
    finite and above 0.

    Args:
        state_dict: names and tensors.
        shapes: shapes of parameters (m, …), and of ``mean`` and ``std`` (d,).
    """
    for name, shape in shapes.items():
        tensor = state_dict.get(name)
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
            given = "is missing" if tensor is None else f"is {_kind(tensor)}"
            raise InputError(f"the checkpoint's {name} {given}, and must be {shape}.")
        check_dense(f"the checkpoint's {name}", tensor)
    parameters = [state_dict[name] for name in shapes if name not in ("mean", "std")]
    if len({parameter.dtype for parameter in parameters}) > 1:
        raise InputError("the checkpoint's weights have several dtypes.")
    if not finite_members(parameters).any():
        raise InputError("the checkpoint's weights are not finite, in no network.")
    Statistics(state_dict["mean"], state_dict["std"])


def _kind(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"

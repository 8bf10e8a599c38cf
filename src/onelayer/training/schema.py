"""What a checkpoint must hold: kinds of values, shapes, finite numbers, counts that fit each other.

A checkpoint is data from outside, like a file of images. Whatever is wrong with it is refused
before anything of it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.version import InvalidVersion, Version
from torch import Tensor

from onelayer.core.checks import check_dense, is_number
from onelayer.core.errors import InputError
from onelayer.core.network import finite_members
from onelayer.data.features import Statistics

KINDS: dict[str, type] = {
    "state_dict": dict,
    "hyper_parameters": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "pytorch-lightning_version": str,
}
"""Of what Lightning writes, where it is there."""
COUNTERS = ("ready", "started", "processed", "completed")
"""Of a loop's progress."""
MOST = 2**53
"""Of a count: more updates than any training makes."""
OPTIONS = (
    "momentum", "dampening", "weight_decay", "nesterov", "maximize", "differentiable", "params",
)  # fmt: skip
"""Of SGD, but for the rate, which a schedule may have set."""
PROGRESS = ("epoch_progress", "epoch_loop.batch_progress")
STEPS = {
    "epoch_loop.automatic_optimization.optim_progress": ("optimizer", "step"),
    "epoch_loop.manual_optimization.optim_step_progress": (),
}
"""Where Lightning counts the updates, and how deep below; one of the two counts."""


def check_content(content: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` unless what Lightning wrote is of its kinds and ranges.

    Parts may be missing, as in a checkpoint of weights alone.
    """
    for name, kind in KINDS.items():
        if name in content:
            _check_kind(name, content[name], kind)
    for name, tensor in content["state_dict"].items():
        _check_kind(f"state_dict[{name!r}]", tensor, Tensor)
    for name in ("epoch", "global_step"):
        if name in content:
            _check_count(name, content[name])
    _check_version(content.get("pytorch-lightning_version"))
    for name, state in content.get("callbacks", {}).items():
        _check_kind(f"callbacks[{name!r}]", state, dict)
    for i, state in enumerate(content.get("optimizer_states", [])):
        _check_optimizer(f"optimizer_states[{i}]", state)
    for name, loop in content.get("loops", {}).items():
        _check_loop(f"loops[{name!r}]", loop)


def check_resumable(content: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` unless a training can go on from it, and its counts agree."""
    missing = [name for name in (*KINDS, "epoch", "global_step") if name not in content]
    fit_loop = content.get("loops", {}).get("fit_loop", {})
    missing += [f"loops.fit_loop.{name}" for name in (*PROGRESS, *STEPS) if name not in fit_loop]
    if missing:
        raise InputError(
            f"the checkpoint has no {missing[0]}: a training cannot go on from it.\n"
            "Name one that a training saved whole, not its weights alone."
        )
    counts = []
    for name, keys in STEPS.items():
        progress = fit_loop[name]
        for key in keys:
            progress = progress[key]
        counts.append(progress["total"]["completed"])
    if content["global_step"] not in counts:
        raise InputError(
            f"the checkpoint's counts do not agree: global_step is {content['global_step']}, and "
            f"its loops count {max(counts)} updates. It is damaged, or was changed."
        )


def check_optimizer(states: list[Any], here: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` unless an optimizer's state is that of this one but for its rate.

    Args:
        states: of the checkpoint, of one optimizer.
        here: ``state_dict`` of the optimizer that goes on.
    """
    groups = states[0]["param_groups"] if len(states) == 1 else []
    if len(groups) != 1:
        raise InputError("the checkpoint is of other optimizers than one, with one group.")
    (ours,), (theirs,) = here["param_groups"], groups
    for name in OPTIONS:
        value = theirs.get(name, "missing")
        if value != ours[name]:
            raise InputError(
                f"the checkpoint's optimizer has {name} = {value!r}, and this one {ours[name]!r}."
            )


def check_tensors(state_dict: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise :class:`InputError` unless a network's tensors are there, with these shapes.

    At least one member must have finite weights; a mean must be finite and a standard deviation
    finite and above 0.

    Args:
        state_dict: names and tensors.
        shapes: of parameters (m, …) in float32 or float64, and of ``mean`` and ``std`` (d,).
    """
    for name, shape in shapes.items():
        tensor = state_dict.get(name)
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
            given = "is not there" if tensor is None else f"is {tuple(tensor.shape)}"
            raise InputError(f"the checkpoint's {name} {given}, and must be {shape}.")
        check_dense(f"the checkpoint's {name}", tensor)
    parameters = [state_dict[name] for name in shapes if name not in ("mean", "std")]
    if len({parameter.dtype for parameter in parameters}) > 1:
        raise InputError("the checkpoint's weights are of several dtypes.")
    if not finite_members(parameters).any():
        raise InputError("the checkpoint's weights are not finite, in no network.")
    Statistics(state_dict["mean"], state_dict["std"])


# ---- parts


def _check_kind(where: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise InputError(
            f"the checkpoint's {where} is {str(value)[:40]!r}, a {type(value).__name__}: it must "
            f"be a {kind.__name__}. It is damaged, or was changed."
        )


def _check_count(where: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
        raise InputError(
            f"the checkpoint's {where} is {str(value)[:40]}: it must be a whole number, 0 or more. "
            "It is damaged, or was changed."
        )


def _check_version(version: str | None) -> None:
    if version is None:
        return
    try:
        if Version(version).major < 2:
            raise InputError(f"the checkpoint is of Lightning {version}: 2.0 is the oldest known.")
    except InvalidVersion as error:
        raise InputError(
            f"the checkpoint is of no version of Lightning: {version[:40]!r}."
        ) from error


def _check_optimizer(where: str, state: Any) -> None:
    _check_kind(where, state, dict)
    groups = state.get("param_groups")
    _check_kind(f"{where}.param_groups", groups, list)
    _check_kind(f"{where}.state", state.get("state"), dict)
    for group in groups:
        _check_kind(f"{where}.param_groups", group, dict)
        _check_kind(f"{where}.param_groups.params", group.get("params"), list)
        rate = group.get("lr")
        if not isinstance(rate, Tensor) and not (is_number(rate) and 0 <= rate < float("inf")):
            raise InputError(f"the checkpoint's learning rate is {rate!r}: a number >= 0 is legal.")


def _check_loop(where: str, loop: Any) -> None:
    _check_kind(where, loop, dict)
    for name, value in loop.items():
        _check_kind(f"{where}[{name!r}]", value, dict)
        if str(name).endswith("progress"):
            _check_progress(f"{where}[{name!r}]", value)
    steps = loop.get("epoch_loop.state_dict", {}).get("_batches_that_stepped", 0)
    _check_count(f"{where} _batches_that_stepped", steps)
    loaders = loop.get("state_dict", {}).get("combined_loader", [])
    _check_kind(f"{where} combined_loader", loaders, list)


def _check_progress(where: str, progress: Any) -> None:
    """A loop's counters, below ``total`` and ``current``, and these maybe below others."""
    _check_kind(where, progress, dict)
    if where.endswith(".optim_progress']"):
        _check_kind(where, progress.get("optimizer"), dict)
        for name in ("step", "zero_grad"):
            _check_progress(f"{where}.{name}", progress["optimizer"].get(name))
        return
    for name in ("total", "current"):
        counters = progress.get(name)
        _check_kind(f"{where}.{name}", counters, dict)
        for key in COUNTERS:  # Lightning itself lets one get ahead of another where a run goes on
            if key in counters:
                _check_count(f"{where}.{name}.{key}", counters[key])
        if "ready" not in counters or "completed" not in counters:
            raise InputError(f"the checkpoint's {where}.{name} has no counts.")
    if where.endswith(".batch_progress']"):
        _check_kind(f"{where}.is_last_batch", progress.get("is_last_batch"), bool)

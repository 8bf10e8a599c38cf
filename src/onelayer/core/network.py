"""Shapes and initial values of a network's parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def parameter_shapes(
    hidden: int, inputs: int = 3072, classes: int = 10
) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each parameter of one member.

    >>> parameter_shapes(0)
    {'W': (10, 3072), 'b': (10,)}
    >>> parameter_shapes(50)
    {'W1': (50, 3072), 'b1': (50,), 'W2': (10, 50), 'b2': (10,)}
    """
    if not hidden:
        return {"W": (classes, inputs), "b": (classes,)}
    return {"W1": (hidden, inputs), "b1": (hidden,), "W2": (classes, hidden), "b2": (classes,)}


def initial_parameters(
    seeds: Sequence[int],
    hidden: int = 0,
    inputs: int = 3072,
    classes: int = 10,
    init_std: float | None = None,
) -> dict[str, Tensor]:
    """Return weights from N(0, 1/fan_in) and biases 0, (m, …) in float64.

    A member depends on its own seed alone. Runs in float32 start from the same numbers, rounded.

    Args:
        seeds: seed of each member, >= 0.
        hidden: hidden units; 0 for the linear softmax.
        inputs: number of features d.
        classes: number of classes k.
        init_std: standard deviation of the weights instead of 1/sqrt(fan_in).
    """
    shapes = parameter_shapes(hidden, inputs, classes)
    members = [_one_member(seed, shapes, init_std) for seed in seeds]
    return {name: torch.stack([member[name] for member in members]) for name in shapes}


def finite_members(parameters: Sequence[Tensor]) -> Tensor:
    """Return which members have finite weights and biases (m, …), bool (m,)."""
    return torch.stack([p.flatten(1).isfinite().all(1) for p in parameters]).all(0)


def _one_member(
    seed: int, shapes: dict[str, tuple[int, ...]], init_std: float | None
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    member = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for W in member.values():
        if W.ndim == 2:
            W.normal_(generator=generator).mul_(
                W.shape[1] ** -0.5 if init_std is None else init_std
            )
    return member

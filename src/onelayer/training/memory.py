"""Memory that networks need, checked before it is allocated."""

from __future__ import annotations

import math

import torch

from onelayer.core.errors import InputError
from onelayer.core.network import parameter_shapes
from onelayer.data.features import free_memory
from onelayer.training.metrics import CHUNK


def numbers_in(hidden: int, inputs: int = 3072, classes: int = 10) -> int:
    """Return the number of weights and biases of one network."""
    return sum(math.prod(shape) for shape in parameter_shapes(hidden, inputs, classes).values())


def check_making(members: int, hidden: int, inputs: int = 3072, classes: int = 10) -> None:
    """Raise :class:`InputError` if there is no memory to make these networks.

    Weights are drawn in float64, one network after the other, and then stacked.
    """
    needed = 16 * members * numbers_in(hidden, inputs, classes)
    _check(needed, torch.device("cpu"), members, "made")


def check_training(
    members: int, hidden: int, inputs: int, classes: int, rows: int, weights: torch.Tensor
) -> None:
    """Raise :class:`InputError` if there is no memory to train existing networks.

    An update needs gradients and their product with the rate. A measurement needs the last layer's
    input twice, for at most CHUNK of ``rows`` samples.
    """
    update = 2 * members * numbers_in(hidden, inputs, classes)
    measurement = 2 * members * min(rows, CHUNK) * (hidden or classes)
    needed = weights.element_size() * max(update, measurement)
    _check(needed, weights.device, members, "trained")


def _check(needed: int, device: torch.device, members: int, done: str) -> None:
    free = free_memory(device)
    if needed > free:
        networks = "this network needs" if members == 1 else f"these {members} networks need"
        remedy = "choose fewer hidden units" + (", l2 or seeds." if members > 1 else ".")
        raise InputError(
            f"to be {done} {networks} {needed / 1e9:,.1f} GB of memory ({device.type}), of which "
            f"{free / 1e9:,.1f} GB are free:\n{remedy}"
        )


def members_in_memory(hidden: int, inputs: int = 3072, classes: int = 10) -> int:
    """Return how many networks fit half of the free memory, with what training them needs."""
    per_network = 4 * (3 * numbers_in(hidden, inputs, classes) + 4 * CHUNK * (hidden or classes))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return max(1, free_memory(device) // 2 // per_network)

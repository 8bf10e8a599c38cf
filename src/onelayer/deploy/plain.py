"""Networks as a plain torch module, without Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from onelayer.core.errors import InputError
from onelayer.deploy.head import Head, head_of

if TYPE_CHECKING:
    from onelayer.training.module import OneLayer


class PlainNetwork(nn.Module):
    """Networks that return their mean class probabilities (n, k) for raw samples (n, …).

    Each network is a Linear, or Linear, ReLU and Linear. W/σ is folded into the first one. The mean
    is subtracted before it, because float32 would lose digits of a mean that is large beside σ.
    Layers of float64 predict as OneLayer does to 1e-6; float32 is off by a few 1e-6.

    Attributes:
        networks: one module per network.
        mean: mean of each feature (d,).
        classes: names of the classes.
    """

    mean: Tensor

    def __init__(self, head: Head, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            _network([value[i].double() for value in head.weights], head.std, dtype)
            for i in range(len(head.weights[0]))
        )
        self.register_buffer("mean", head.mean.to(head.work))
        self.unit, self.returns = head.unit, head.weights[0].dtype
        self.classes = list(head.network.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class probabilities (n, k); bytes are divided by 255."""
        x = x.flatten(1)
        if not x.is_floating_point():
            x = x.to(self.mean.dtype) / 255
        x = x.to(torch.promote_types(x.dtype, self.mean.dtype))
        if self.unit:
            length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            x = x / length.where(length > 0, 1.0)
        else:
            x = x - self.mean
        p = torch.stack([_probabilities(network, x) for network in self.networks]).mean(0)
        return p.to(self.returns)


def plain_module(
    network: OneLayer, member: int | str = "best", dtype: torch.dtype = torch.float64
) -> PlainNetwork:
    """Return the networks that predict as a plain module, in evaluation mode on the CPU."""
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype is {dtype}. Choose torch.float32 or torch.float64.")
    return PlainNetwork(head_of(network, member), dtype).eval()


def _probabilities(network: nn.Module, x: Tensor) -> Tensor:
    first: Tensor = next(network.parameters())
    p: Tensor = network(x.to(first.dtype)).softmax(-1)
    return p


def _network(weights: list[Tensor], std: Tensor, dtype: torch.dtype) -> nn.Sequential:
    """Return one network of W (k, d), b (k,), or W1, b1, W2, b2, for centred samples."""
    scaled = [weights[0] / std, *weights[1:]]
    layers = list[nn.Module]()
    for W, b in zip(scaled[::2], scaled[1::2], strict=True):
        linear = nn.Linear(W.shape[1], W.shape[0], dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(W)
            linear.bias.copy_(b)
        layers += [nn.ReLU(), linear] if layers else [linear]
    return nn.Sequential(*layers)

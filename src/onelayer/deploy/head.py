"""The networks that predict, with the standardisation of their samples: what every format holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.core.network import finite_members
from onelayer.data.features import Statistics, standardise
from onelayer.training.members import Choice, Member

if TYPE_CHECKING:
    from onelayer.training.module import OneLayer

TYPES = {"uint8": torch.uint8, "float32": torch.float32, "float64": torch.float64}
"""Types of raw samples. Bytes are pixels: 255 stands for 1."""


@dataclass(frozen=True)
class Head:
    """Networks whose mean probabilities predict, and how raw samples are standardised.

    Attributes:
        weights: W (m, k, d), b (m, k), or W1, b1, W2, b2; of the networks that have not diverged.
        names: names of the weights.
        mean: mean of each feature, as ``predict`` subtracts it: rounded to ``work``, float64 (d,).
        std: standard deviation, likewise.
        unit: whether each sample is divided by its length instead.
        shape: shape of one raw sample.
        dtype: type of raw samples.
        choice: the members, and their description.
        network: the population.
        member: its choice, as in predict.
    """

    weights: list[Tensor]
    names: list[str]
    mean: Tensor
    std: Tensor
    unit: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    choice: Choice
    network: OneLayer
    member: int | str

    @property
    def work(self) -> torch.dtype:
        """Type in which samples are standardised."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def outputs(self) -> int:
        """Number of classes k."""
        return self.network.outputs

    @property
    def members(self) -> list[Member]:
        """The networks: λ and seed of each."""
        return [self.network.members[i] for i in self.choice.members]

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Return what ``predict`` does: probabilities (n, k) of raw samples (n, …)."""
        network = self.network
        statistics = Statistics(network.mean.cpu(), network.std.cpu())
        W = network.weights[0]
        X = standardise(x.flatten(1), statistics, unit=self.unit).to(W.device, W.dtype)
        return network.predict_proba(X, self.member).cpu()

    def folded(self) -> dict[str, Tensor]:
        """Return the weights for samples that are not standardised, float64, by name.

        The first layer's are W/σ and b − Wμ/σ. Bytes must be divided by 255.

        Raises:
            InputError: samples are divided by their lengths, which no weights can express.
        """
        if self.unit:
            raise InputError(
                "standardise is unit: each sample is divided by its length, which weights alone "
                "cannot express.\nWrite an .onnx file, or use network.to_torch()."
            )
        W, b, *others = (value.double() for value in self.weights)
        W = W / self.std
        b = b - W @ self.mean
        return dict(zip(self.names, (W, b, *others), strict=True))


def head_of(network: OneLayer, member: int | str = "best", dtype: str | None = None) -> Head:
    """Return the networks that predict as ``network.predict_proba(…, member)`` does.

    Args:
        network: the population.
        member: best, all, or the index of one member.
        dtype: type of raw samples: uint8, float32 or float64. Default: that of the training data.

    Raises:
        InputError: there is no such member, none is finite, predictions are averaged over flipped
            images, or the type is none.
    """
    if network.ensembles.mirror is not None:
        raise InputError(
            "test.mirror is true: predictions are averaged over flipped images, which an exported "
            "network does not do. Set test.mirror to false."
        )
    name = dtype or _usual_type(network.samples)
    if name not in TYPES:
        raise InputError(f"the type of samples is {name!r}. Choose one of {', '.join(TYPES)}.")
    choice = network.choose(member)
    weights = [value.detach().cpu()[choice.members] for value in network.weights]
    finite = finite_members(weights)
    if not finite.any():
        raise InputError(f"{choice.words} has weights that are not finite: it has diverged.")
    kept = [i for i, is_finite in zip(choice.members, finite.tolist(), strict=True) if is_finite]
    work = torch.promote_types(TYPES[name], torch.float32)
    scale = 255 if name == "uint8" else 1  # rounded as data.features does it
    mean, std = (
        (value.cpu() * scale).to(work).double() / scale for value in (network.mean, network.std)
    )
    return Head(
        [value[finite] for value in weights],
        list(network.names),
        mean,
        std,
        network.samples.get("standardise") == "unit",
        shape_of(network),
        TYPES[name],
        choice._replace(members=kept),
        network,
        member,
    )


def shape_of(network: OneLayer) -> tuple[int, ...]:
    """Return the shape of one sample: (channels, height, width) of images, else (d,)."""
    shape = tuple(network.samples.get("shape") or ())
    return shape if len(shape) == 3 else (network.inputs,)


def _usual_type(samples: Mapping[str, Any]) -> str:
    """Return the type of the training data; half precision counts as float32."""
    if samples.get("kind") == "bytes":
        return "uint8"
    return "float64" if samples.get("dtype") == "float64" else "float32"


def needed(name: str, what: str, extra: str) -> Any:
    """Import a library that an optional extra installs.

    Raises:
        InputError: it is not installed; with the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(
            f"{what} needs the package {package}, which is not installed:\n"
            f'pip install "onelayer[{extra}]"'
        ) from error

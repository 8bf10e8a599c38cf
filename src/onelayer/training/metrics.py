"""Loss and accuracy of networks, and of ensembles, over a split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from onelayer.core import formulas
from onelayer.core.errors import InputError
from onelayer.data.augment import mirror as flip
from onelayer.data.features import Features, SomeRows
from onelayer.training.records import quantities

CHUNK = 5000  # images measured at once: a large matrix product, little memory
Shape = Sequence[int]
"""Channels, height and width of an image."""


def mean_of_finite(figures: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each metric's mean over the finite members (m,); over all if none is finite."""
    finite = torch.stack(list(figures.values())).isfinite().all(0)
    kept = finite if bool(finite.any()) else torch.ones_like(finite)
    return {name: value[kept].mean() for name, value in figures.items()}


class Measure(Metric):
    """Loss and accuracy of each member, kept as sums and counts because batches differ in size.

    Args:
        members: number of networks m.
        classes: number of classes k to measure the balanced accuracy, which is the mean of the
            classes' recalls; 0 to leave it out.
    """

    full_state_update = False
    loss: Tensor
    correct: Tensor
    count: Tensor
    total: Tensor
    recalled: Tensor
    samples: Tensor

    def __init__(self, members: int, classes: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes
        zeros = torch.zeros(members, dtype=torch.float64)
        self.add_state("loss", zeros, dist_reduce_fx="sum")
        self.add_state("correct", zeros.clone(), dist_reduce_fx="sum")
        for name in ("count", "total"):  # samples, and their weights
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        if classes:  # correct predictions, and samples, of each class
            zeros = torch.zeros(members, classes, dtype=torch.float64)
            self.add_state("recalled", zeros, dist_reduce_fx="sum")
            self.add_state("samples", zeros[0].clone(), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(
        self,
        X: Features | SomeRows,
        y: Tensor,
        parameters: formulas.Parameters,
        weight: Tensor | None = None,
    ) -> None:
        """Add the samples X (n, d) with labels y (n,); ``weight`` (n,) weighs their losses."""
        start = 0
        for X_, y_ in zip(X.split(CHUNK), y.split(CHUNK), strict=True):
            loss, correct = self.values(X_, y_, parameters)
            if weight is not None:
                loss = loss * weight[start : start + len(y_)]
            self.loss += loss.sum(1, dtype=torch.float64)
            self.correct += correct.sum(1, dtype=torch.float64)
            if self.classes:
                self.recalled.index_add_(1, y_, correct.double())
                self.samples += torch.bincount(y_, minlength=self.classes)
            start += len(y_)
        self.count += len(y)
        self.total += len(y) if weight is None else weight.sum(dtype=torch.float64)

    def values(
        self, X: Tensor, y: Tensor, parameters: formulas.Parameters
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample, and whether it is predicted correctly, (m, n) each."""
        return formulas.measure(X, y, parameters)

    def compute(self) -> dict[str, Tensor]:
        """Return mean ``loss`` and ``accuracy`` (0 to 1) of each member, (m,) float64.

        With ``classes`` also ``balanced_accuracy``, over the classes that have samples.
        """
        result = {"loss": self.loss / self.total, "accuracy": self.correct / self.count}
        if self.classes:
            there = self.samples > 0
            recall = self.recalled[:, there] / self.samples[there]
            result["balanced_accuracy"] = recall.mean(1)
        return result


@torch.no_grad()
def precise_probabilities(
    X: Tensor, parameters: formulas.Parameters, mirror: Shape | None = None
) -> Tensor:
    """Return :func:`mean_probabilities` computed in float64, in the dtype of the parameters.

    In float32 a sum over thousands of features is off by 1e-6. A logit that the dtype of the
    parameters cannot hold counts as not finite.
    """
    dtype, device = parameters[0].dtype, parameters[0].device
    wide = [value.double() for value in parameters]
    largest = torch.finfo(dtype).max
    found = [
        mean_probabilities(x.to(device).double(), wide, mirror, largest) for x in X.split(CHUNK)
    ]
    return torch.cat(found).to(dtype)


def mean_probabilities(
    X: Tensor,
    parameters: formulas.Parameters,
    mirror: Shape | None = None,
    largest: float = math.inf,
) -> Tensor:
    """Return class probabilities (n, k) of X (n, d), averaged over the members.

    Members whose logits are not finite are ignored.

    Args:
        X: standardised samples (n, d).
        parameters: parameters of the members, (m, …) each.
        mirror: shape of an image, to average over each image and the image flipped left to right.
        largest: logits whose absolute value is larger count as not finite.
    """
    Z = formulas.logits(X, parameters)
    if largest < math.inf:
        Z = Z.where(Z.abs() <= largest, math.nan)
    P = Z.softmax(-1).nanmean(0)
    if mirror is None:
        return P
    return (P + mean_probabilities(flip(X, tuple(mirror)), parameters, None, largest)) / 2


def check_image(shape: Any, inputs: int) -> tuple[int, ...]:
    """Return the shape of images as a tuple.

    Raises:
        InputError: images of this shape do not have ``inputs`` numbers.
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != 3 or math.prod(sizes) != inputs:
        raise InputError(
            f"only images can be flipped: the shape must be (channels, height, width) with "
            f"{inputs} numbers, not {shape!r}."
        )
    return sizes


class EnsembleMeasure(Measure):
    """Loss and accuracy of ensembles, which predict by the mean probabilities of their members.

    A probability of 0 counts as the smallest positive number of its dtype.

    Args:
        groups: members of each ensemble.

    Attributes:
        mirror: shape of an image, to average over flipped images as well; None by default.
    """

    def __init__(self, groups: Sequence[Sequence[int]], classes: int = 0, **kwargs: Any) -> None:
        super().__init__(len(groups), classes, **kwargs)
        self.groups = [list(group) for group in groups]
        self.mirror: tuple[int, ...] | None = None

    @property
    def wanted(self) -> bool:
        """Return whether an ensemble differs from a single network."""
        return self.mirror is not None or any(len(group) > 1 for group in self.groups)

    def values(
        self, X: Tensor, y: Tensor, parameters: formulas.Parameters
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample, and whether it is predicted correctly, (g, n) each."""
        each = ([p[group] for p in parameters] for group in self.groups)
        P = torch.stack([mean_probabilities(X, own, self.mirror) for own in each])
        true = P.gather(2, y.expand(len(P), -1).unsqueeze(2)).squeeze(2)
        loss = -true.clamp_min(torch.finfo(P.dtype).tiny).log()
        return loss, (P.argmax(2) == y) & P.isfinite().all(2)


def ensembles_of(module: Any, split: str) -> list[dict[str, Any]]:
    """Return the metrics of a module's ensembles over the split measured last, as in summary.json.

    There is one ensemble per λ, with the number of its networks that have not diverged. Every
    process must call this function.
    """
    measure: EnsembleMeasure = module.ensembles
    if not measure.update_called:
        return []
    finite = module.finite_members().tolist()
    steps = sorted({member.step for member in module.members if member.step is not None})
    figures = {name: value.reshape(-1).tolist() for name, value in measure.compute().items()}
    return [
        {
            "l2": module.members[group[0]].l2,
            "networks": sum(finite[m] for m in group),
            **({"snapshots": steps} if steps else {}),
            **({"mirror": True} if measure.mirror else {}),
            split: {name: figures[name][i] for name in quantities(figures)},
        }
        for i, group in enumerate(measure.groups)
        if math.isfinite(figures["loss"][i])
    ]

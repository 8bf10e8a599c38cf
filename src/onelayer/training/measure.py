"""The figures of a population over a split, summed so that shards and chunks can be added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from onelayer.core import formulas
from onelayer.data.features import Features, SomeRows

QUANTITIES = ("cost", "loss", "accuracy")
CHUNK = 5000
"""Images measured at once: enough for the quick product of many rows, few enough for memory."""


def mean_of_finite(figures: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each figure's mean over the members (m,) that have not diverged, or over all if all have."""
    finite = torch.stack(list(figures.values())).isfinite().all(0)
    kept = finite if bool(finite.any()) else torch.ones_like(finite)
    return {name: value[kept].mean() for name, value in figures.items()}


class Measure(Metric):
    """Loss and accuracy of each member: sums and counts, so that unequal batches weigh right.

    Args:
        members: m.
    """

    full_state_update = False
    loss: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self, members: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(members, dtype=torch.float64)
        self.add_state("loss", zeros, dist_reduce_fx="sum")
        self.add_state("correct", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, X: Features | SomeRows, y: Tensor, parameters: formulas.Parameters) -> None:
        """Add the samples X (n, d) with labels y (n,)."""
        for X_, y_ in zip(X.split(CHUNK), y.split(CHUNK), strict=True):
            loss, correct = self.sums(X_, y_, parameters)
            self.loss += loss
            self.correct += correct
        self.count += len(y)

    def sums(self, X: Tensor, y: Tensor, parameters: formulas.Parameters) -> tuple[Tensor, Tensor]:
        """Summed loss and number of correct predictions of each member, (m,) float64 each."""
        return formulas.measure(X, y, parameters)

    def compute(self) -> dict[str, Tensor]:
        """Mean ``loss`` and ``accuracy`` (0 to 1) of each member, (m,) float64."""
        return {"loss": self.loss / self.count, "accuracy": self.correct / self.count}

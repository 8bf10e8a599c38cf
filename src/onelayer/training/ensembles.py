"""Ensembles: several networks, or several views of an image, whose mean probabilities answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onelayer.core import formulas
from onelayer.training.measure import Measure


def mean_probabilities(X: Tensor, parameters: formulas.Parameters) -> Tensor:
    """Class probabilities (n, k) of X (n, d): the mean over the members of ``parameters``.

    Members whose logits are not finite know none and are left out.
    """
    return formulas.logits(X, parameters).softmax(-1).nanmean(0)


class EnsembleMeasure(Measure):
    """Loss and accuracy of ensembles, the networks of each by the mean of their probabilities.

    A probability too small for its dtype counts as the smallest that it has.

    Args:
        groups: the members of each ensemble.
    """

    def __init__(self, groups: Sequence[Sequence[int]], **kwargs: Any) -> None:
        super().__init__(len(groups), **kwargs)
        self.groups = [list(group) for group in groups]

    @property
    def wanted(self) -> bool:
        """Whether one of them says anything else than a single network."""
        return any(len(group) > 1 for group in self.groups)

    def sums(self, X: Tensor, y: Tensor, parameters: formulas.Parameters) -> tuple[Tensor, Tensor]:
        """Summed loss and number of correct predictions of each ensemble, (g,) float64 each."""
        P = torch.stack(
            [mean_probabilities(X, [p[group] for p in parameters]) for group in self.groups]
        )
        true = P.gather(2, y.expand(len(P), -1).unsqueeze(2)).squeeze(2)
        loss = -true.clamp_min(torch.finfo(P.dtype).tiny).log()
        correct = (P.argmax(2) == y) & P.isfinite().all(2)
        return loss.sum(1, dtype=torch.float64), correct.sum(1, dtype=torch.float64)


def ensembles_of(module: Any, split: str) -> list[dict[str, Any]]:
    """The figures of a module's ensembles over the split measured last, as in summary.json.

    One for each λ, with how many networks it has that have not diverged; none where each network
    answers for itself. Of several processes each must ask.
    """
    measure: EnsembleMeasure = module.ensembles
    if not measure.update_called:
        return []
    finite = module.finite_members().tolist()
    figures = {name: value.reshape(-1).tolist() for name, value in measure.compute().items()}
    return [
        {
            "l2": module.members[group[0]].l2,
            "networks": sum(finite[m] for m in group),
            split: {name: figures[name][i] for name in ("loss", "accuracy")},
        }
        for i, group in enumerate(measure.groups)
        if math.isfinite(figures["loss"][i])
    ]

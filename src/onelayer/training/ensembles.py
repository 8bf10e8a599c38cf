"""Ensembles: several networks, or several views of an image, whose mean probabilities answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onelayer.core import formulas
from onelayer.core.errors import InputError
from onelayer.data.augment import mirror as mirrored
from onelayer.training.measure import Measure

Shape = Sequence[int]
"""Colours, height and width of an image."""


def mean_probabilities(
    X: Tensor, parameters: formulas.Parameters, mirror: Shape | None = None
) -> Tensor:
    """Class probabilities (n, k) of X (n, d): the mean over the members of ``parameters``.

    Members whose logits are not finite know none and are left out.

    Args:
        X: standardised samples (n, d).
        parameters: of the members, (m, …) each.
        mirror: for the mean over each image and its mirror image, what shape images have.
    """
    P = formulas.logits(X, parameters).softmax(-1).nanmean(0)
    if mirror is None:
        return P
    return (P + mean_probabilities(mirrored(X, tuple(mirror)), parameters)) / 2


def check_image(shape: Any, inputs: int) -> tuple[int, ...]:
    """The shape of images, as a tuple.

    Raises:
        InputError: it is not that of images of ``inputs`` numbers each.
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != 3 or math.prod(sizes) != inputs:
        raise InputError(
            f"only images have mirror images: of shape (colours, height, width), {inputs} numbers "
            f"each, not {shape!r}."
        )
    return sizes


class EnsembleMeasure(Measure):
    """Loss and accuracy of ensembles, the networks of each by the mean of their probabilities.

    A probability too small for its dtype counts as the smallest that it has.

    Args:
        groups: the members of each ensemble.

    Attributes:
        mirror: shape of the images whose mirror images are asked, too; None for none.
    """

    def __init__(self, groups: Sequence[Sequence[int]], **kwargs: Any) -> None:
        super().__init__(len(groups), **kwargs)
        self.groups = [list(group) for group in groups]
        self.mirror: tuple[int, ...] | None = None

    @property
    def wanted(self) -> bool:
        """Whether one of them says anything else than a single network."""
        return self.mirror is not None or any(len(group) > 1 for group in self.groups)

    def sums(self, X: Tensor, y: Tensor, parameters: formulas.Parameters) -> tuple[Tensor, Tensor]:
        """Summed loss and number of correct predictions of each ensemble, (g,) float64 each."""
        each = ([p[group] for p in parameters] for group in self.groups)
        P = torch.stack([mean_probabilities(X, own, self.mirror) for own in each])
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
    steps = sorted({member.step for member in module.members if member.step is not None})
    figures = {name: value.reshape(-1).tolist() for name, value in measure.compute().items()}
    return [
        {
            "l2": module.members[group[0]].l2,
            "networks": sum(finite[m] for m in group),
            **({"snapshots": steps} if steps else {}),
            **({"mirror": True} if measure.mirror else {}),
            split: {name: figures[name][i] for name in ("loss", "accuracy")},
        }
        for i, group in enumerate(measure.groups)
        if math.isfinite(figures["loss"][i])
    ]

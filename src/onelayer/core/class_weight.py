"""Weights of classes, which multiply the weights of their samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onelayer.core.checks import check_number
from onelayer.core.errors import InputError

ClassWeight = str | Mapping[str, float] | None
"""``balanced``, or weights by the names of classes; None for a weight of 1 each."""


def check_class_weight(given: ClassWeight) -> None:
    """Raise :class:`InputError` unless it is ``balanced`` or a mapping to numbers, 0 or more."""
    if given is None or given == "balanced":
        return
    if not isinstance(given, Mapping) or not given:
        raise InputError(
            f"class_weight is {given!r}: it must be balanced, or a mapping from names of classes "
            "to numbers, such as {cat: 2, dog: 1}."
        )
    for name, value in given.items():
        check_number(f"class_weight of {name}", value)


def learn_class_weights(
    given: ClassWeight, names: Sequence[str], y: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return the weight of each class (k,), float64, scaled by the samples of a training split.

    The samples then have mean weight 1: that of their class times their own.

    Args:
        given: see :data:`ClassWeight`; a class that a mapping does not name has weight 1.
        names: names of the classes, in order.
        y: labels (n,).
        weight: weights of the samples (n,), not negative. Default: 1 each.

    Raises:
        InputError: the mapping names no such class, or leaves all samples without weight.
    """
    own = torch.ones_like(y, dtype=torch.float64) if weight is None else weight.double()
    totals = torch.zeros(len(names), dtype=torch.float64, device=y.device).index_add_(0, y, own)
    of_class = balanced(totals) if given == "balanced" else _by_name(given, names).to(totals)
    total = (of_class * totals).sum()
    if not bool(total > 0):
        raise InputError(
            "class_weight gives every training sample weight 0: nothing is learned. Give a class "
            "a weight above 0."
        )
    return of_class * (totals.sum() / total)


def _by_name(given: ClassWeight, names: Sequence[str]) -> Tensor:
    weights = {str(name): float(value) for name, value in dict(given or {}).items()}  # type: ignore[arg-type]
    if unknown := weights.keys() - set(names):
        few = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise InputError(
            f"class_weight has the class {min(unknown)!r}, which is none of {few}. Correct its "
            "name."
        )
    return torch.tensor([weights.get(name, 1.0) for name in names], dtype=torch.float64)


def balanced(totals: Tensor) -> Tensor:
    """Return ``Σ totals / (k totals)`` (k,): every class then has the same summed weight.

    Source: scikit-learn's ``class_weight="balanced"``. A class without samples has weight 0.
    """
    weights = totals.sum() / (len(totals) * totals)
    return weights.where(totals > 0, 0.0)

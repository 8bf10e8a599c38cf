"""Fit linear layers for the estimators: standardised features, scikit-learn's C, coefficients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onelayer.core.checks import LARGEST, check_positive, is_number
from onelayer.core.errors import TrainingError
from onelayer.core.optimum.solve import Optima, Report, solve


def l2_of(C: float, total: float, classes: int) -> float:
    """Return λ of scikit-learn's C: 1 / (2 C Σw), and twice that for two classes.

    With two classes scikit-learn penalises ‖v‖², where v is the difference of the two rows. These
    are ± v/2, so that their ‖W‖² is half of it.
    """
    return 1 / ((1 if classes == 2 else 2) * C * total)


def plain_number(value: Any) -> Any:
    """Return a NumPy number as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def penalty(C: Any, l2: Any, total: float, classes: int) -> float:
    """Return the λ of an estimator's C or l2, whichever is given; raise where it is not above 0."""
    C, l2 = plain_number(C), plain_number(l2)
    if l2 is not None:
        check_positive("l2", l2)
        return float(l2)
    if is_number(C) and math.isinf(C):
        raise ValueError(
            "C is inf: without a penalty there may be no minimum, and no certificate. "
            "Choose a large finite C, such as 1e6."
        )
    check_positive("C", C)
    return l2_of(C, total, classes)


class Scale:
    """Mean and deviation of each feature (d,), weighted as the samples are."""

    def __init__(self, X: Tensor, weight: Tensor, centred: bool) -> None:
        w = (weight / weight.sum()).to(X.dtype)
        self.mean = w @ X if centred else torch.zeros_like(X[0])
        deviation = (w @ (X - self.mean).square()).sqrt()
        self.std = torch.where(deviation > 0, deviation, 1.0)

    def scaled(self, X: Tensor) -> Tensor:
        """Return (X - mean) / std."""
        return (X - self.mean) / self.std

    def unscaled(self, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return W (m, k, d) and b (m, k) in the units of X as given."""
        W = W / self.std.to(W.dtype)
        return W, b - W @ self.mean.to(W.dtype)


def fit_linear(
    X: Tensor,
    y: Tensor,
    weight: Tensor,
    l2: Sequence[float],
    *,
    gap: float,
    bias: bool,
    scale: Scale | None = None,
    polished: bool = True,
    start: tuple[Tensor, Tensor] | None = None,
    report: Report | None = None,
) -> tuple[Optima, Tensor, Tensor]:
    """Solve for each member; return the optima, and W and b in the units of X as given.

    Args:
        X: features (n, d).
        y: labels (n,).
        weight: weights (n,) for all members, or (m, n).
        l2: λ of each member.
        gap: largest certified distance to the minimum.
        bias: whether to fit an intercept.
        scale: mean and deviation that features are standardised by first.
        polished: whether small problems are solved to the last digits.
        start: W and b to start from, in the units that are solved in.
        report: called after each iteration and round.

    Raises:
        InputError: see :func:`onelayer.core.optimum.solve.solve`.

    Source: the module's texts.
    """
    if scale is not None:
        X = scale.scaled(X)
    first = None
    if start is None and not polished:
        first = _in_single_precision(X, y, l2, gap, weight, bias)
        start = None if first is None else (first.W, first.b)
    optima = solve(
        X, y, l2, gap, weight=weight, bias=bias, polished=polished, start=start, report=report
    )  # fmt: skip
    if first is not None:
        optima = replace(optima, iterations=optima.iterations + first.iterations)
    W, b = optima.W, optima.b
    if scale is not None:
        W, b = scale.unscaled(W, b)
    return optima, W, b


def _in_single_precision(
    X: Tensor, y: Tensor, l2: Sequence[float], gap: float, weight: Tensor, bias: bool
) -> Optima | None:
    """Return the optima in float32, which takes half the time; None where that is no use."""
    if X.dtype != torch.float64 or not bool(X.abs().amax() < LARGEST):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the solve in float64 says what is left
        try:
            return solve(X.float(), y, l2, gap, weight=weight, bias=bias)
        except TrainingError:
            return None


def coefficients(W: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's coef_ and intercept_ of W (k, d) and b (k,); one row if k is 2."""
    if len(W) == 2:
        W, b = W[1:] - W[:1], b[1:] - b[:1]
    return W.cpu().numpy(), b.cpu().numpy()

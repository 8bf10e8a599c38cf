"""Newton's steps at the end of a solve, until rounding is all that is left of the gradient.

A gap of 1e-6 leaves weights that differ in the third digit: ‖W - W*‖² ≤ gap / λ. Weights that are
compared with those of another solver need the gradient itself to vanish.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from onelayer.core import formulas
from onelayer.core.optimum.curvature import FullHessian, with_ones, without_shift
from onelayer.core.optimum.data import Samples
from onelayer.core.optimum.descent import is_small
from onelayer.core.optimum.lbfgs import dot

STEPS = 12  # Newton's steps at most; two or three are usual
WORK = 1e10  # products of a Hessian, n (k (d + 1))², up to which a problem counts as small
HALVED = 0.5  # share that the decrement falls to, at least, in a step that is kept


def is_polished(samples: Samples) -> bool:
    """Return whether full Hessians are affordable for the last digits."""
    return is_small(samples) and samples.n * (samples.k * (samples.d + 1)) ** 2 <= WORK


def polish(
    samples: Samples, W: Tensor, b: Tensor, l2: Tensor, members: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take Newton's steps in float64 while each halves the decrement gᵀH⁻¹g or more.

    Args:
        samples: the data.
        W: weights (m, k, d), close to the minimum.
        b: biases (m, k).
        l2: λ (m,).
        members: indices among the members of ``samples`` (m,).

    Returns:
        W, b and the next direction (m, k, d + 1), all in float64.

    Source: Boyd and Vandenberghe, *Convex Optimization* (2004), section 9.5.
    """
    mean = _mean(samples)
    polished = [
        _polish(samples, _centred(W[i : i + 1], b[i : i + 1], mean), l2[i : i + 1], member, mean)
        for i, member in enumerate(members.split(1))
    ]
    θ, p = (torch.cat(parts) for parts in zip(*polished, strict=True))
    return θ[..., :-1], _bias(θ, mean), torch.cat([p[..., :-1], _bias(p, mean).unsqueeze(2)], 2)


def _polish(
    samples: Samples, θ: Tensor, l2: Tensor, member: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    p, best = _newton(samples, θ, l2, member, mean)
    for _ in range(STEPS):
        there = θ + p
        direction, decrement = _newton(samples, there, l2, member, mean)
        if not decrement <= HALVED * best:  # never for NaN
            break
        θ, p, best = there, direction, decrement
    return θ, p


def _newton(
    samples: Samples, θ: Tensor, l2: Tensor, member: Tensor, mean: Tensor
) -> tuple[Tensor, float]:
    """Return Newton's direction of one member (1, k, d + 1) and the decrement gᵀH⁻¹g."""

    def chunks() -> Iterator[tuple[slice, Tensor, Tensor]]:
        b = _bias(θ, mean)
        for at, X in samples.chunks(samples.k, torch.float64):
            yield at, X, formulas.affine(X, θ[..., :-1], b).mT

    g = 2 * l2.view(-1, 1, 1) * θ
    g[..., -1] = 0
    loss = torch.zeros_like(g)
    for at, X, Z in chunks():
        G = formulas.residual(Z.mT, samples.y[at], 1.0).mT
        G = G * samples.weight(at, member, torch.float64)
        loss += G @ with_ones(X - mean, samples.bias)
    g += samples.total(loss)
    p = -FullHessian(chunks, samples, member, mean, l2).solve(g)
    return p, float(-dot(g, p))


def _mean(samples: Samples) -> Tensor:
    """Return the features' mean (d,), or zeros where no bias takes it up."""
    total = torch.zeros(samples.d, dtype=torch.float64, device=samples.y.device)
    if samples.bias:
        for _, X in samples.chunks(samples.d, torch.float64):
            total += X.sum(0)
    return samples.total(total) / samples.n


def _centred(W: Tensor, b: Tensor, mean: Tensor) -> Tensor:
    θ = torch.cat([W, (b + W @ mean).unsqueeze(2)], 2).double()
    return without_shift(θ)  # which no direction changes


def _bias(θ: Tensor, mean: Tensor) -> Tensor:
    return θ[..., -1] - θ[..., :-1] @ mean

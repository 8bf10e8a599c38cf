r"""How far linear softmax networks are from their optimum, at most: a bound that is no estimate.

For λ > 0 the cost is convex and has one smallest value. Its dual is a bound from below: for any
class probabilities P whose residual G = (P - Y)/n has :math:`\sum_n G = 0`,

.. math::

    D(P) = \tfrac1n \sum_n H(p_n) - \lVert G^T X \rVert^2 / (4 \lambda)
    \;\le\; \min J \;\le\; J(W, b)

with the entropy H. So J(W, b) - D(P) bounds what is left to gain, whatever found W and b. P are the
network's own probabilities at the best bias b* for its W, where :math:`\sum_n G = \partial J /
\partial b = 0`; then

.. math::

    J(W, b^*) - D(P) = \lVert \partial J / \partial W \rVert^2 / (4 \lambda),
    \qquad \partial J / \partial W = G^T X + 2 \lambda W.

Source: Fenchel duality of the log-sum-exp, whose conjugate is the negative entropy; Boyd and
Vandenberghe, *Convex Optimization* (2004), sections 3.3.1 and 5.1.6; Shalev-Shwartz and Zhang,
*Stochastic dual coordinate ascent*, JMLR 14 (2013), section 1 and table 1 for the dual of a
regularised loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from onelayer.core import formulas
from onelayer.core.errors import InputError
from onelayer.core.rows import Rows

BALANCED = 1e-12
"""Σ|Σₙ G| that counts as 0 in float64."""
MOST_STEPS = 200
"""To the best bias: two or three of Newton's, and slower ones where it starts far away."""


class Certificate(NamedTuple):
    """Of each member: its cost, by how much that is above the optimum at most, its best bias."""

    cost: Tensor  # J(W, b) (m,)
    gap: Tensor  # J(W, b) - D (m,)
    bias: Tensor  # b* (m, k)


@torch.no_grad()
def certify(
    rows: Rows, W: Tensor, b: Tensor, l2: Tensor, members: Tensor | None = None
) -> Certificate:
    """Cost and gap ``J(W, b) - D(P)`` of each member, in float64.

    Args:
        rows: the rows that J is the mean over.
        W: weights (m, k, d).
        b: biases (m, k), any: those of P are the best for W.
        l2: λ of each member (m,), above 0.
        members: which of the members of ``rows`` they are; all by default.

    Raises:
        InputError: for a weight or a bias that is not finite, or weights so large that no bias can
            be found for them.

    Source: the module's equations.
    """
    if not (W.isfinite().all() and b.isfinite().all()):
        raise InputError("a network that has diverged has no distance to the optimum.")
    if members is None:
        members = torch.arange(len(W), device=W.device)
    size = max(1, rows.at_once(_bytes(rows)))
    parts = [
        _certify(_Balance(rows, W_.double(), m), b_.double(), l2_.double())
        for W_, b_, l2_, m in zip(*(T.split(size) for T in (W, b, l2, members)), strict=True)
    ]
    return Certificate(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _bytes(rows: Rows) -> float:
    """Of a member's logits, and of as much again for what is made of them."""
    return 2.0 * 8 * rows.k * rows.share


def _certify(balance: _Balance, b: Tensor, l2: Tensor) -> Certificate:
    W = balance.W
    loss, bias, least = balance.best_bias(b)
    g = balance.gradient(bias) + 2 * l2.view(-1, 1, 1) * W
    rest = g.square().sum((1, 2)) / (4 * l2)
    cost = loss + formulas.penalty([W, b], l2)
    return Certificate(cost, (loss - least).clamp(min=0) + rest, bias)


class _Sums(NamedTuple):
    """Of a bias: what the best one is found by."""

    loss: Tensor  # mean (m,)
    G: Tensor  # Σₙ G (m, k)
    S: Tensor  # Σₙ w (diag p - ppᵀ) (m, k, k)

    @property
    def distance(self) -> Tensor:
        return self.G.abs().sum(1)

    def where(self, better: Tensor, other: _Sums) -> _Sums:
        """The other's numbers for some members."""
        return _Sums(*(_where(better, o, s) for s, o in zip(self, other, strict=True)))


def _where(chosen: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *(1,) * (A.ndim - 1)), A, B)


class _Balance:
    """Members' logits in float64, kept where they fit, and the bias that balances their classes."""

    def __init__(self, rows: Rows, W: Tensor, members: Tensor) -> None:
        self.rows, self.W, self.members = rows, W, members
        self.kept: list[tuple[slice, Tensor]] | None = None
        if rows.at_once(_bytes(rows)) >= len(W):
            self.kept = list(self._logits(W.new_zeros(W.shape[:2])))

    def best_bias(self, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss at b (m,), the best bias (m, k), and the loss there (m,).

        Newton's steps, and, where one of them does not halve the distance, b + log(ȳ/p̄), which
        never raises the loss: iterative scaling; Darroch and Ratcliff (1972).
        """
        start = now = self._sums(b)
        for _ in range(MOST_STEPS):
            open_ = now.distance > BALANCED
            if not bool(open_.any()):
                return start.loss, b, now.loss
            newton = _where(open_, b - self._newton(now), b)
            there = self._sums(newton)
            better = there.distance <= 0.5 * now.distance  # never of NaN
            shares = self.rows.shares(self.members)
            scaled = _where(open_ & ~better, b + (shares / (shares + now.G)).log(), b)
            b, last = _where(better, newton, scaled), now
            now = last.where(better, there)
            if not bool((better | ~open_).all()):
                now = now.where(~better, self._sums(b))
        raise InputError(
            "no bias balances the classes for these weights: they are too large for float64."
        )

    def _newton(self, now: _Sums) -> Tensor:
        # One number added to all biases changes nothing: S has no inverse, S + 1/k has.
        S = (now.S + 1 / now.S.shape[1]).nan_to_num()
        step: Tensor = torch.linalg.lstsq(S, now.G.unsqueeze(2)).solution
        return step.squeeze(2)

    def gradient(self, b: Tensor) -> Tensor:
        """``GᵀX`` (m, k, d)."""
        g = torch.zeros_like(self.W)
        for (at, Z), (_, X) in zip(self._logits(b), self._chunks(), strict=True):
            G = formulas.residual(Z.mT, self.rows.y[at], 1.0).mT * self._weight(at)
            formulas.combine(g, G.mT, X, 1, 1.0, out=g)
        return self.rows.total(g)

    def _sums(self, b: Tensor) -> _Sums:
        m, k = b.shape
        sums = _Sums(b.new_zeros(m), b.new_zeros(m, k), b.new_zeros(m, k, k))
        for at, Z in self._logits(b):
            w, y = self._weight(at), self.rows.y[at]
            sums.loss.add_((formulas.cross_entropy(Z.mT, y).unsqueeze(1) * w).sum((1, 2)))
            P = Z.softmax(1)
            Q = P * w
            sums.G.add_((formulas.residual(Z.mT, y, 1.0).mT * w).sum(2))
            sums.S.sub_(Q @ P.mT).diagonal(dim1=1, dim2=2).add_(Q.sum(2))
        self.rows.totals(*sums)
        return sums

    def _weight(self, at: slice) -> Tensor | float:
        return self.rows.weight(at, self.members, torch.float64)

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        return self.rows.chunks(self.W.shape[0] * self.W.shape[1], torch.float64)

    def _logits(self, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their logits (m, k, n)."""
        if self.kept is not None:
            return ((at, Z + b.unsqueeze(2)) for at, Z in self.kept)
        return ((at, formulas.affine(X, self.W, b).mT) for at, X in self._chunks())

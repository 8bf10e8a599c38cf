r"""A bound on how far linear softmax networks are from the minimum of their cost.

For λ > 0 the cost is convex and has one smallest value. Its dual is a bound from below. For any
class probabilities P whose residual G = w ⊙ (P - Y) has :math:`\sum_n G = 0`,

.. math::

    D(P) = \sum_n w_n H(p_n) - \lVert G^T X \rVert^2 / (4 \lambda)
    \;\le\; \min J \;\le\; J(W, b)

with the entropy H and weights w that sum to 1. So J(W, b) - D(P) bounds what is left to gain,
whatever found W and b. P are the network's own probabilities at the best bias b* for its W, where
:math:`\sum_n G = \partial J / \partial b = 0`; then

.. math::

    J(W, b^*) - D(P) = \lVert \partial J / \partial W \rVert^2 / (4 \lambda),
    \qquad \partial J / \partial W = G^T X + 2 \lambda W.

In floating point :math:`r = \sum_n G` is never exactly 0, and for large weights it may stay far
from it. The bound is then that of P' = (1 - ε) P + ε q, with one q for all samples, chosen such
that the residual of P' does sum to 0: q = ȳ - ρ r with ρ = min ȳ / r over r > 0, ε = 1 / (1 + ρ).
H is concave, so H(P') ≥ (1 - ε) H(P) + ε H(q), and

.. math::

    J - D(P') \le \frac{\lVert \partial J / \partial W \rVert^2}{4 \lambda} + r \cdot b
    + \epsilon \Big(\sum_n w_n H(p_n) - H(q)\Big)
    + \frac{2 \epsilon \langle G^T X, B \rangle + \epsilon^2 \lVert B \rVert^2}{4 \lambda},
    \qquad B = q \bar x^T - P^T (w \odot X).

P need not be the network's own. Where a direction (dW, db) towards the minimum is known, such as
Newton's, the probabilities that it predicts, p' = p + (diag p - ppᵀ) dz with dz = dW x + db, give a
bound that is far smaller where features have very different scales:

.. math::

    J(W, b) - D(P') = \sum_n w_n \mathrm{KL}(p'_n \,\|\, p_n) + r' \cdot b
    + \lVert {G'}^T X + 2 \lambda W \rVert^2 / (4 \lambda),

which for Newton's own direction is half its decrement, to second order.

Without a bias, P need not balance the classes: r and ε are 0.

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
from onelayer.core.optimum.curvature import Factors
from onelayer.core.optimum.data import Samples

BALANCED = 1e-15  # Σ|Σₙ G| that counts as 0
NEARLY = 1e-8  # Σ|Σₙ G| at which a failed Newton step ends the search: rounding is all that is left
ROUNDING = 1e-12  # relative rise of the loss that counts as none
BALANCING = 3  # steps that balance predicted probabilities; one, but for those cut off at 0
MAX_STEPS = 200  # steps to the best bias; two or three are usual


class Certificate(NamedTuple):
    """Bounds for each member, float64 (m,), and its best bias (m, k).

    ``cost`` is J(W, b), and ``gap`` is at least what it lies above the minimum. ``excess`` is what
    the cost falls by when b is replaced by ``bias``; cost and gap both fall by that much.
    """

    cost: Tensor
    gap: Tensor
    bias: Tensor
    excess: Tensor


@torch.no_grad()
def certify(
    samples: Samples,
    W: Tensor,
    b: Tensor,
    l2: Tensor,
    members: Tensor | None = None,
    direction: Tensor | None = None,
) -> Certificate:
    """Compute the cost of each member and a bound on its distance to the minimum, in float64.

    Args:
        samples: the samples that J is the mean over.
        W: weights (m, k, d).
        b: biases (m, k).
        l2: λ of each member (m,), above 0.
        members: their indices among the members of ``samples``; default all.
        direction: (dW, db) towards the minimum (m, k, d + 1), for a bound that uses it.

    Returns:
        A :class:`Certificate`. A gap is NaN or infinite only where float64 overflows.

    Raises:
        InputError: a weight or bias that is not finite.

    Source: the module's equations.
    """
    if not (W.isfinite().all() and b.isfinite().all()):
        raise InputError("a network that has diverged has no distance to the minimum.")
    if members is None:
        members = torch.arange(len(W), device=W.device)
    size = max(1, samples.at_once(_bytes(samples)))
    chunks = []
    for some in torch.arange(len(W), device=W.device).split(size):
        balance = _Balance(samples, W[some].double(), members[some])
        b_, l2_ = b[some].double(), l2[some].double()
        if direction is None:
            chunks.append(_certify(balance, b_, l2_))
        else:
            chunks.append(_certify_along(balance, b_, l2_, direction[some].double()))
    return Certificate(*(torch.cat(chunk) for chunk in zip(*chunks, strict=True)))


def _bytes(samples: Samples) -> float:
    """Return the bytes of a member's logits and of what is made of them."""
    return 2.0 * 8 * samples.k * samples.shard


def _certify(balance: _Balance, b: Tensor, l2: Tensor) -> Certificate:
    """Use the network's own probabilities at its best bias."""
    loss, bias, now = balance.best_bias(b)
    gap = _bound(balance, balance.gradient(bias), now.G, bias, now.loss, l2)
    cost = loss + formulas.penalty([balance.W, b], l2)
    excess = loss - now.loss
    return Certificate(cost, (excess + gap).clamp(min=0), bias, excess)


def _certify_along(balance: _Balance, b: Tensor, l2: Tensor, direction: Tensor) -> Certificate:
    """Use the probabilities that a direction predicts."""
    now = balance.sums(b)
    A, r, divergence = balance.predicted(b, direction, now)
    gap = divergence + _bound(balance, A, r, b, now.loss - divergence, l2)
    cost = now.loss + formulas.penalty([balance.W, b], l2)
    return Certificate(cost, gap.clamp(min=0), b, torch.zeros_like(gap))


def _bound(balance: _Balance, A: Tensor, r: Tensor, b: Tensor, loss: Tensor, l2: Tensor) -> Tensor:
    """Bound J - D(P'), without the divergence of P from the network's probabilities (m,).

    Args:
        balance: the members.
        A: GᵀX (m, k, d).
        r: Σₙ G (m, k).
        b: biases (m, k).
        loss: mean loss less that divergence (m,): Σ w H(p) = loss - ⟨A, W⟩ - r·b.
        l2: λ (m,).
    """
    r = r - r.mean(1, keepdim=True)  # it sums to 0, but for rounding
    shares = balance.samples.class_shares(balance.members)
    sums = balance.samples.class_sums(balance.members)  # Σ w y xᵀ
    lift = (r * b).sum(1)
    ρ = torch.where(r > 0, shares / r, 1e30).amin(1, keepdim=True).clamp(max=1e30)
    ε, q = (1 / (1 + ρ)).squeeze(1), (shares - ρ * r).clamp(min=0)
    entropy = loss - _inner(A, balance.W) - lift
    B = q.unsqueeze(2) * sums.sum(1, keepdim=True) - sums - A
    mixed = ε * (entropy + torch.special.xlogy(q, q).sum(1))
    mixed += (2 * ε * _inner(A, B) + ε.square() * _inner(B, B)) / (4 * l2)
    residual = A + 2 * l2.view(-1, 1, 1) * balance.W
    bound: Tensor = _inner(residual, residual) / (4 * l2) + lift + mixed
    return bound


def _inner(A: Tensor, B: Tensor) -> Tensor:
    return (A * B).sum((1, 2))


class _Sums(NamedTuple):
    """Sums over the samples at one bias: what finds the best one."""

    loss: Tensor  # mean (m,)
    G: Tensor  # Σₙ G (m, k)
    S: Tensor  # Σₙ w (diag p - ppᵀ) (m, k, k)

    @property
    def distance(self) -> Tensor:
        return self.G.abs().sum(1)

    def where(self, chosen: Tensor, other: _Sums) -> _Sums:
        """Return these sums, with the other's for some members."""
        return _Sums(*(_where(chosen, o, s) for s, o in zip(self, other, strict=True)))


def _where(chosen: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *(1,) * (A.ndim - 1)), A, B)


class _Balance:
    """Members' logits in float64, kept where they fit, and the bias that balances their classes."""

    def __init__(self, samples: Samples, W: Tensor, members: Tensor) -> None:
        self.samples, self.W, self.members = samples, W, members
        self.kept: list[tuple[slice, Tensor]] | None = None
        if samples.at_once(_bytes(samples)) >= len(W):
            self.kept = list(self._logits(W.new_zeros(W.shape[:2])))

    def best_bias(self, b: Tensor) -> tuple[Tensor, Tensor, _Sums]:
        """Return the mean loss at b (m,), the best bias (m, k) and the sums there.

        Newton's steps, and, where one of them does not halve the distance or raises the loss,
        b + log(ȳ/p̄), which never raises it: iterative scaling; Darroch and Ratcliff (1972).
        """
        given, start = b, self.sums(b)
        if not self.samples.bias:
            return start.loss, b, start
        now = start
        shares = self.samples.class_shares(self.members)
        open_ = ~(now.distance <= BALANCED)
        for _ in range(MAX_STEPS):
            if not bool(open_.any()):
                break
            newton = _where(open_, b - self._newton(now), b)
            there = self.sums(newton)
            better = there.distance <= 0.5 * now.distance  # never for NaN
            better &= there.loss <= now.loss * (1 + ROUNDING)
            open_ &= better | ~(now.distance <= NEARLY)
            ratio = shares / (shares + now.G).clamp(min=1e-16)  # p̄, of which less is rounding
            scaled = _where(open_ & ~better, b + ratio.log(), b)
            b, last = _where(better, newton, scaled), now
            now = last.where(better, there)
            if not bool((better | ~open_).all()):
                now = now.where(~better, self.sums(b))
            open_ &= ~(now.distance <= BALANCED)
        worse = ~(now.loss <= start.loss)  # by rounding, where logits are very large
        return start.loss, _where(worse, given, b), now.where(worse, start)

    def predicted(self, b: Tensor, direction: Tensor, now: _Sums) -> tuple[Tensor, Tensor, Tensor]:
        """Return G'ᵀX (m, k, d), Σₙ G' (m, k) and Σ w KL(p' ‖ p) (m,) of predicted probabilities.

        A number for each class is added to dz until Σₙ G' = 0.
        """
        dW, db = direction[..., :-1], direction[..., -1]
        for _ in range(BALANCING * self.samples.bias):
            r = torch.zeros_like(b)
            for P, G, δ, w, _ in self._along(b, dW, db):
                r += ((G + P * δ) * w).sum(2)
            self.samples.total(r)
            db = db - self._newton(now._replace(G=r))
        A, r, divergence = torch.zeros_like(dW), torch.zeros_like(b), torch.zeros_like(now.loss)
        for P, G, δ, w, X in self._along(b, dW, db):
            divergence += (P * (torch.special.xlog1py(1 + δ, δ) - δ) * w).sum((1, 2))
            G = (G + P * δ) * w
            r += G.sum(2)
            formulas.combine(A, G.mT, X, 1, 1.0, out=A)
        self.samples.totals(A, r, divergence)
        return A, r * self.samples.bias, divergence

    def _along(
        self, b: Tensor, dW: Tensor, db: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | float, Tensor]]:
        """Yield p, p - y, δ = p'/p - 1, weights and features of each chunk.

        δ = dz - p·dz; where that is below -1, p' is 0 and the other classes have a little less.
        """
        for (at, Z), (_, X) in zip(self._logits(b), self._chunks(), strict=True):
            G = formulas.residual(Z.mT, self.samples.y[at], 1.0).mT
            P, dz = Z.softmax(1), formulas.affine(X, dW, db).mT
            δ = (dz - (P * dz).sum(1, keepdim=True)).clamp(min=-1)
            total = (P * δ).sum(1, keepdim=True)
            yield P, G, ((δ - total) / (1 + total)).clamp(min=-1), self._weight(at), X

    def gradient(self, b: Tensor) -> Tensor:
        """Return ``GᵀX`` (m, k, d)."""
        g = torch.zeros_like(self.W)
        for (at, Z), (_, X) in zip(self._logits(b), self._chunks(), strict=True):
            G = formulas.residual(Z.mT, self.samples.y[at], 1.0).mT * self._weight(at)
            formulas.combine(g, G.mT, X, 1, 1.0, out=g)
        return self.samples.total(g)

    def _newton(self, now: _Sums) -> Tensor:
        # One number added to all biases changes nothing: S has no inverse, S + 1/k has.
        # Not by torch.linalg.lstsq, whose bits change from run to run.
        return Factors((now.S + 1 / now.S.shape[1]).nan_to_num()).solve(now.G.nan_to_num())

    def sums(self, b: Tensor) -> _Sums:
        m, k = b.shape
        sums = _Sums(b.new_zeros(m), b.new_zeros(m, k), b.new_zeros(m, k, k))
        for at, Z in self._logits(b):
            w, y = self._weight(at), self.samples.y[at]
            sums.loss.add_((formulas.cross_entropy(Z.mT, y).unsqueeze(1) * w).sum((1, 2)))
            P = Z.softmax(1)
            Q = P * w
            sums.G.add_((formulas.residual(Z.mT, y, 1.0).mT * w).sum(2))
            sums.S.sub_(Q @ P.mT).diagonal(dim1=1, dim2=2).add_(Q.sum(2))
        self.samples.totals(*sums)
        return sums._replace(G=sums.G * self.samples.bias)

    def _weight(self, at: slice) -> Tensor | float:
        return self.samples.weight(at, self.members, torch.float64)

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        return self.samples.chunks(self.W.shape[0] * self.W.shape[1], torch.float64)

    def _logits(self, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield sample indices and their logits (m, k, n')."""
        if self.kept is not None:
            return ((at, Z + b.unsqueeze(2)) for at, Z in self.kept)
        return ((at, formulas.affine(X, self.W, b).mT) for at, X in self._chunks())

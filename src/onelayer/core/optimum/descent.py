"""The iterations of a solve: directions, steps that never raise a cost, and when to stop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from onelayer.core import formulas
from onelayer.core.optimum.curvature import (
    CURVATURE_SAMPLES,
    FACTORISED,
    ClassBlocks,
    Covariance,
    Curvature,
    FullHessian,
    Kronecker,
    without_shift,
)
from onelayer.core.optimum.data import Samples, spread
from onelayer.core.optimum.lbfgs import History, dot, times

MEMORY = 15  # pairs that L-BFGS keeps; half as many where memory is short
TRIALS = 40  # steps that a line search tries, at most; nearly always one or two suffice
STRICT = 5  # trials after which a slope need not be small any more
NEAR, LOOSE = 0.3, 0.9  # share of the first slope at which a line search ends, before and after
EXPAND, SHRINK = 4.0, 0.1  # factors where Newton's method leaves the bracket
FAR, FORCING = 100.0, 0.1  # decrement, in gaps, above which Newton's system is solved this well
EXHAUSTED = 1e-26  # squared residual, of the first, at which rounding is all that is left
MAX_INNER = 300  # conjugate gradients for one direction
SMALL = 2048  # unknowns k (d + 1) of a member up to which its full Hessian is used
FAILURES = 2  # line searches in a row without a lower cost, after which a member stops


class Receiver(Protocol):
    """Receiver of a descent's iterations."""

    samples: Samples
    l2: Tensor

    def record(
        self, members: Tensor, W: Tensor, b: Tensor, estimate: Tensor, direction: Tensor | None
    ) -> Tensor:
        """Take the state of some members after an iteration; return their iterations so far."""


class Descent:
    """Iterations over the samples, of members that fit in memory, until each has arrived.

    Inside, the bias is that of centred features, b + Wμ, which hardly depends on W. θ is (W, b),
    (m, k, d + 1), in float64; g, p and the logits (m, k, n) are in the dtype ``dtype``.

    Args:
        receiver: gets every iteration.
        members: indices (m,).
        C: covariance of the features, for the curvature.
        dtype: of the products with X.
        gap: estimated gap at which a member leaves.
        patience: iterations without a smaller gap after which a member leaves.
        limit: iterations of a member, over all rounds.
        most: iterations of this round.
        newton: whether directions are Newton's, not L-BFGS's: by the full Hessian of a small
            problem, by conjugate gradients otherwise.
    """

    def __init__(
        self,
        receiver: Receiver,
        members: Tensor,
        W: Tensor,
        b: Tensor,
        C: Covariance,
        dtype: torch.dtype,
        gap: float,
        patience: int,
        limit: int,
        most: int,
        newton: bool,
    ) -> None:
        self.receiver, self.samples, self.C, self.dtype = receiver, receiver.samples, C, dtype
        self.gap, self.patience, self.limit, self.most = gap, patience, limit, most
        self.newton, self.small, self.rounds = newton, is_small(self.samples), 0
        self.active, self.l2 = members, receiver.l2[members]
        self.units = len(members) * self.samples.k
        self.every = max(1, self.samples.n // CURVATURE_SAMPLES)
        self.mean = C.mean.double()
        θ = torch.cat([W, (b + W @ self.mean).unsqueeze(2)], 2)
        self.θ = without_shift(θ)  # which lowers the penalty, and changes no probability
        fits = self.samples.at_once(member_bytes(self.samples, dtype.itemsize)) > 0
        self.keeps_step = fits
        self.history = History(MEMORY if fits else MEMORY // 2)
        self.Z = [Z for _, _, Z in self._products(self.θ)]
        self.Zp: list[tuple[slice, Tensor]] = []
        self.best = torch.full_like(self.l2, torch.inf)
        self.since = torch.zeros_like(members)
        self.failures = torch.zeros_like(members)

    def run(self) -> None:
        """Descend until every member has arrived, is stuck or has used its iterations."""
        g, S = self._gradient()
        while True:
            finite = g.flatten(1).isfinite().all(1) & S.flatten(1).isfinite().all(1)
            g, S = self._keep(finite, g, S)
            if not len(self.active):
                return
            p, estimate = self._direction(g, S)
            kept = ~self._arrived(estimate, p)
            g, p = self._keep(kept, g, p)
            if not len(self.active):
                return
            self.Zp = [(at, Z) for at, _, Z in self._products(p)] if self.keeps_step else []
            step = self._length(p, dot(g, p).double())
            self._move(p, step)
            last = g
            g, S = self._gradient()
            self.history.add(times(step.to(p.dtype), p), g - last)
            failed = step == 0
            self.failures = torch.where(failed, self.failures + 1, 0)
            if bool(failed.any()):
                self.history.forget(failed)

    # ---- products with X

    def _products(self, θ: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield indices, features and their products (m, k, n'): logits, or those of a step."""
        W, b = θ[..., :-1], θ[..., -1] - θ[..., :-1] @ self.mean.to(θ.dtype)
        W, b = W.to(self.dtype).contiguous(), b.to(self.dtype)
        for at, X in self.samples.chunks(self.units, self.dtype):
            yield at, X, formulas.affine(X, W, b).mT

    def _steps(self, p: Tensor) -> Iterator[tuple[slice, Tensor]]:
        if self.keeps_step:
            return iter(self.Zp)
        return ((at, Z) for at, _, Z in self._products(p))

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """Return ∂J/∂θ (m, k, d + 1), and S (m, k, k) of a sample of the data.

        S is that of q = (p + y) / 2 instead of p. Where probabilities are calibrated, its
        expectation is 3/4 of S; where a network is sure and wrong, p gives no curvature at all.
        """
        m, k, d = len(self.active), self.samples.k, self.samples.d
        g = self.θ.new_zeros(m, k, d, dtype=self.dtype)
        g_b = self.θ.new_zeros(m, k, dtype=self.dtype)
        S, seen = self.θ.new_zeros(m, k, k, dtype=self.dtype), self.θ.new_zeros(m, 1, 1)
        for (at, X), Z in zip(self.samples.chunks(self.units, self.dtype), self.Z, strict=True):
            y, w = self.samples.y[at], self.samples.weight(at, self.active, self.dtype)
            G = formulas.residual(Z.mT, y, 1.0).mT
            G *= w
            g_b += G.sum(2)
            formulas.combine(g, G.mT, X, 1, 1.0, out=g)
            some = spread(Z.shape[2], self.every, Z.device)
            Q = Z.index_select(2, some).softmax(1).mul_(0.5)
            Q.scatter_(1, y[some].expand(m, 1, -1), 0.5, reduce="add")
            w_ = w if isinstance(w, float) else w.index_select(2, some)
            Q_w = Q * w_
            S.baddbmm_(Q_w, Q.mT, alpha=-1).diagonal(dim1=1, dim2=2).add_(Q_w.sum(2))
            seen += len(some) * w_ if isinstance(w_, float) else w_.sum(2, keepdim=True)
        seen = seen.to(self.dtype)
        self.samples.totals(g, g_b, S, seen)
        g_b *= self.samples.bias
        g -= g_b.unsqueeze(2) * self.mean.to(self.dtype)
        g += (2 * self.l2.view(-1, 1, 1) * self.θ[..., :-1]).to(self.dtype)
        S = torch.where(seen > 0, S * (4 / 3) / seen, _uniform(k, S))
        return torch.cat([g, g_b.unsqueeze(2)], 2), S

    # ---- an iteration

    def _logits(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        chunks = self.samples.chunks(self.units, self.dtype)
        return ((at, X, Z) for (at, X), Z in zip(chunks, self.Z, strict=True))

    def _direction(self, g: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        """Return a direction (m, k, d + 1) and the estimated gap (m,)."""
        if not self.newton:
            kronecker = Kronecker(self.C, S.to(self.C.dtype), self.l2)
            return self._quasi_newton(g, kronecker), self._of_weights(g) + kronecker.of_bias(g) / 2
        arguments = self._logits, self.samples, self.active, self.mean, self.l2
        if self.small:
            hessian = FullHessian(*arguments)
            p = -hessian.solve(g)
            rest = g + hessian.times(p)
        else:
            blocks = self.samples.d <= FACTORISED
            p, rest = self._conjugate_gradients(
                g, ClassBlocks(*arguments) if blocks else Kronecker(self.C, S, self.l2)
            )
        return p, dot(g, p).abs() / 2 + self._of_weights(rest)

    def _quasi_newton(self, g: Tensor, curvature: Curvature) -> Tensor:
        """Return L-BFGS's direction, or -H⁻¹g where that does not descend, or else -g."""
        p = -self.history.solve(g, curvature)
        uphill = ~(dot(g, p) < 0)
        if not bool(uphill.any()):
            return p
        self.history.forget(uphill)
        p = torch.where(uphill.view(-1, 1, 1), -curvature.solve(g), p)
        return torch.where((dot(g, p) < 0).view(-1, 1, 1), p, -g)

    def _of_weights(self, g: Tensor) -> Tensor:
        """Return ``‖∂J/∂W‖² / (4λ)`` (m,)."""
        return g[..., :-1].double().square().sum((1, 2)) / (4 * self.l2)

    def _conjugate_gradients(self, g: Tensor, curvature: Curvature) -> tuple[Tensor, Tensor]:
        """Solve Hp = -g; return p and the residual g + Hp.

        Far from the minimum a rough solution will do; near it, the residual must be small enough
        for the certificate.
        """
        P = [Z.softmax(1) for Z in self.Z]
        p, rest = torch.zeros_like(g), g.clone()
        v = -curvature.solve(rest)
        size = first = -dot(rest, v)
        done = ~(size > 0)
        for _ in range(MAX_INNER):
            Hv = self._hessian_times(v, P)
            α = torch.where(done, 0.0, size / dot(v, Hv)).nan_to_num()
            p += times(α, v)
            rest += times(α, Hv)
            z = curvature.solve(rest)
            size, before = dot(rest, z), size
            far = dot(g, p).abs() / 2 > FAR * self.gap
            rough = far & (size <= FORCING * first)
            done |= rough | ~(size > EXHAUSTED * first)
            done |= ~far & (self._of_weights(rest) <= self.gap / 4)
            if bool(done.all()):
                break
            v = times(size / before, v) - z
        return p, rest

    def _hessian_times(self, v: Tensor, P: list[Tensor]) -> Tensor:
        """Return ``Hv`` (m, k, d + 1) by two products with X."""
        g, g_b = torch.zeros_like(v[..., :-1]), torch.zeros_like(v[..., -1])
        for (at, X, U), P_ in zip(self._products(v), P, strict=True):
            Q = P_ * (U - (P_ * U).sum(1, keepdim=True))
            Q *= self.samples.weight(at, self.active, self.dtype)
            g_b += Q.sum(2)
            formulas.combine(g, Q.mT, X, 1, 1.0, out=g)
        self.samples.totals(g, g_b)
        g_b *= self.samples.bias
        g -= g_b.unsqueeze(2) * self.mean
        g += 2 * self.l2.view(-1, 1, 1) * v[..., :-1]
        return torch.cat([g, g_b.unsqueeze(2)], 2)

    def _arrived(self, estimate: Tensor, p: Tensor) -> Tensor:
        """Return which members need no further iteration, or can make none, bool (m,)."""
        better = estimate < 0.9 * self.best
        self.best = torch.minimum(self.best, estimate)
        self.since = torch.where(better, 0, self.since + 1)
        W = self.θ[..., :-1]
        b = self.θ[..., -1] - W @ self.mean
        direction = self._uncentred(p) if self.newton else None
        done = self.receiver.record(self.active, W, b, estimate, direction)
        self.rounds += 1
        return (
            (estimate <= self.gap)
            | (self.since > self.patience)
            | (self.failures >= FAILURES)
            | (done >= self.limit)
            | (self.rounds >= self.most)
        )

    def _uncentred(self, p: Tensor) -> Tensor:
        """Return a direction (m, k, d + 1) with the bias of the features as given."""
        b = p[..., -1] - p[..., :-1] @ self.mean
        return torch.cat([p[..., :-1], b.unsqueeze(2)], 2)

    def _keep(self, kept: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Keep some of the members; the others leave every product."""
        if bool(kept.all()):
            return others
        self.active, self.l2, self.θ = self.active[kept], self.l2[kept], self.θ[kept]
        self.best, self.since = self.best[kept], self.since[kept]
        self.failures = self.failures[kept]
        self.history.keep(kept)
        for i, Z in enumerate(self.Z):
            self.Z[i] = Z[kept]
        return tuple(other[kept] for other in others)

    def _length(self, p: Tensor, slope0: Tensor) -> Tensor:
        """Return each member's step along p (m,), at which its cost is lower; 0 if none is found.

        J is convex, so it is lower at every step whose slope is negative. Newton's method in one
        unknown aims a little before the minimum; where it leaves the bracket, the step expands or
        shrinks. A slope that is not finite counts as too far.
        """
        P = p[..., :-1].double()
        rise, bend = 2 * self.l2 * dot(self.θ[..., :-1], P), 2 * self.l2 * dot(P, P)
        t, low, high = torch.ones_like(rise), torch.zeros_like(rise), rise.new_full((), torch.inf)
        high = high.expand_as(rise)
        reached = slope0
        for trial in range(TRIALS):
            slope, curvature = self._slope(p, t)
            slope, curvature = slope + rise + t * bend, curvature + bend
            down = slope <= 0
            low, reached = torch.where(down, t, low), torch.where(down, slope, reached)
            high = torch.where(down, high, t)
            near = NEAR if trial < STRICT else LOOSE
            done = (low > 0) & (reached >= near * slope0)
            if bool(done.all()):
                break
            newton = t - (slope - NEAR / 3 * slope0) / curvature
            inside = (newton > low) & (newton < high)
            within = torch.where(low > 0, (low + high) / 2, SHRINK * high)
            fallback = torch.where(high < torch.inf, within, EXPAND * t)
            t = torch.where(done, low, torch.where(inside, newton, fallback))
        return low

    def _slope(self, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return first and second derivative (m,) of the mean loss along p at t."""
        sums = t.new_zeros(2, len(t))
        t_ = t.to(self.dtype).view(-1, 1, 1)
        for (at, Zp), Z in zip(self._steps(p), self.Z, strict=True):
            w, y = self.samples.weight(at, self.active, self.dtype), self.samples.y[at]
            Q = torch.addcmul(Z, Zp, t_).softmax(1).mul_(Zp)
            mean = Q.sum(1, keepdim=True)
            of_label = Zp.gather(1, y.expand(len(t), 1, -1))
            sums[0] += ((mean - of_label) * w).sum((1, 2))
            Q *= w
            sums[1] += torch.bmm(Q.view(len(t), 1, -1), Zp.view(len(t), -1, 1)).view(-1)
            sums[1] -= (mean.square_() * w).sum((1, 2))
        slope, curvature = self.samples.total(sums)
        return slope, curvature

    def _move(self, p: Tensor, step: Tensor) -> None:
        self.θ += times(step, p.double())
        for (_, Zp), Z in zip(self._steps(p), self.Z, strict=True):
            Z.addcmul_(Zp, times(step.to(self.dtype), Zp.new_ones(1)))


def _uniform(k: int, like: Tensor) -> Tensor:
    """Return S (k, k) for equal probabilities, used if a member's subset has no weight."""
    eye = torch.eye(k, dtype=like.dtype, device=like.device)
    return (eye - 1 / k) / k


def member_bytes(samples: Samples, itemsize: int) -> float:
    """Return the bytes of a member's logits, those of its step, and L-BFGS's pairs."""
    return itemsize * samples.k * (2.0 * samples.shard + 2 * MEMORY * (samples.d + 1))


def is_small(samples: Samples) -> bool:
    """Return whether the full Hessian of a member is affordable."""
    return samples.k * (samples.d + 1) <= SMALL

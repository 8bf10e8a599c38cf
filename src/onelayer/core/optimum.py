r"""The linear softmax layer's optimum, for every λ at once, each with a certificate.

The cost of each member is convex for λ > 0; :mod:`onelayer.core.certificate` bounds how far from
its optimum a network is. Found by preconditioned L-BFGS, all members in each product with X:

- Preconditioner. With C = XᵀX/n of centred features and S = mean(diag p - ppᵀ), the Hessian is
  close to S ⊗ C + 2λI. C is decomposed once, of a sample of rows, and serves every λ; S of each
  member anew. H⁻¹g: rotate by both, divide by sᵢeⱼ + 2λ, rotate back (Kronecker-factored curvature;
  Martens and Grosse (2015), section 4.2; for softmax regression Böhning (1992)).
- L-BFGS on top: Nocedal and Wright, *Numerical Optimization* (2006), algorithm 7.4.
- Exact line search. Logits are linear in the step: with Z = XWᵀ + b and Zp = XPᵀ + p kept, a step's
  slope and curvature are sums over (m, k, n) numbers, and Newton's method in one unknown finds its
  length without another product.

An iteration, a *pass*, is two products: XPᵀ and GᵀX. Members that have arrived leave them. Passes
are in float32, and in float64 only where the gap asked for needs it; the certificate always is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onelayer.core import formulas
from onelayer.core.certificate import certify
from onelayer.core.checks import LARGEST, check_positive, check_whole, is_number
from onelayer.core.errors import InputError
from onelayer.core.rows import Rows, check_rows, spread

MEMORY = 15
"""Steps and changes of the gradient that L-BFGS knows; half as many where memory is short."""
SAMPLE = 2
"""Rows that C is taken of, for each feature: twice as many spare few passes and cost more."""
BLOCK = 512
"""Columns of C that are made at once."""
CURVATURE_ROWS = 4096
"""Rows that S is taken of."""
MOST_FEATURES = 8192
"""Of more, C is not decomposed whole: that would take longer than the passes."""
STEPS = 6
"""Of a line search, at most; nearly always it is one."""
NEAR = 0.1
"""Of the slope at 0, where one more step of Newton's, unchecked, ends a line search."""
DEVICE_STEPS = 2
"""Of one on a GPU, always: to ask whether one was enough would be to wait for it."""
PATIENCE = {torch.float32: 8, torch.float64: 50}
"""Passes without a smaller gap after which no more is to be had in a precision."""
ROUNDS = ((False, 0.2), (False, 0.1), (True, 0.5), (True, 0.05))
"""Whether passes are in float64, and the share of the gap at which a member leaves them.

After each round the members are certified; those that are there take no part in the next."""


@dataclass(frozen=True)
class Path:
    """Members in the order of λ as asked for, with folds those of the first fold first.

    ``W`` (m, k, d) and ``b`` (m, k) in float64; ``cost`` J and ``gap`` J - D, by how much J is
    above its optimum at most; ``passes`` over the rows; ``fold`` that a member did not learn from,
    -1 for none; all (m,).
    """

    l2: Tensor
    W: Tensor
    b: Tensor
    cost: Tensor
    gap: Tensor
    passes: Tensor
    fold: Tensor


@dataclass(frozen=True)
class Progress:
    """What is known after a pass of all members: weights, biases, estimated gaps, passes."""

    W: Tensor
    b: Tensor
    gap: Tensor
    passes: Tensor


Report = Callable[[Progress], None]


def solve(
    X: Any,
    y: Tensor,
    l2: float | Sequence[float] | Tensor,
    gap: float = 1e-6,
    *,
    folds: Tensor | None = None,
    start: tuple[Tensor, Tensor] | None = None,
    most_passes: int = 1000,
    shared: bool = False,
    report: Report | None = None,
) -> Path:
    r"""The linear softmax layers of least cost ``J``, one for each λ, to a certified gap.

    .. math:: J(W, b) = \tfrac1n \sum_n -\log \mathrm{softmax}(x_n W^T + b)_{y_n} + \lambda \|W\|^2

    Args:
        X: features (n, d), floating point: a tensor, or anything with a tensor's ``shape``,
            ``dtype``, ``device``, ``split`` and ``index_select``, such as rows mapped from a file.
        y: labels (n,), int64, from 0 to k - 1; each class has a row.
        l2: λ of each member, above 0.
        gap: how far above the optimum a cost may be.
        folds: of each row (n,), from 0: for each fold and each λ a member that learns from the
            other folds, all in the same passes.
        start: W (m, k, d) and b (m, k) to go on from; zeros by default.
        most_passes: of a member; where they do not suffice, its gap says so.
        shared: X and y are this process's share of the rows, and every process of torch.distributed
            calls this function: sums are added over all of them.
        report: called after every pass.

    Returns:
        A :class:`Path`, on the device of X.

    Raises:
        InputError: naming what is wrong: a λ that is not above 0, a feature that is not finite, a
            class without a row.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> X, y = torch.randn(90, 4, generator=g), torch.arange(90) % 3
        >>> path = solve(X, y, l2=[0.01, 0.1])
        >>> path.W.shape, bool((path.gap <= 1e-6).all())
        (torch.Size([2, 3, 4]), True)

    Source: the module's equations.
    """
    l2 = l2.tolist() if isinstance(l2, Tensor) else l2
    l2 = list(l2) if isinstance(l2, Sequence) else [l2]
    check_l2(l2)
    check_positive("gap", gap)
    check_whole("most_passes", most_passes, 1)
    check_rows(X, y)
    y = y.to(X.device)
    fold = torch.full((len(l2),), -1, device=y.device)
    if folds is not None:
        check_folds(folds, y)
        fold = torch.arange(int(folds.max()) + 1, device=y.device).repeat_interleave(len(l2))
    repeats = len(fold) // len(l2)
    λ = torch.tensor(l2 * repeats, dtype=torch.float64, device=y.device)
    rows = Rows(X, y, folds=folds, left_out=None if folds is None else fold, shared=shared)
    with torch.no_grad():
        return _Solver(rows, λ, fold, gap, most_passes, report).run(start)


def check_l2(l2: Sequence[float]) -> None:
    """Raise :class:`InputError` unless every λ has a certified optimum: all are above 0."""
    if not len(l2):
        raise InputError("l2 must list at least one λ > 0.")
    for value in l2:
        if is_number(value) and value == 0:
            raise InputError(
                "l2 must be > 0, not 0: without a penalty the weights of separable data grow for "
                "ever, and no gap can be certified. Take a small λ, such as 1e-6."
            )
        if not is_number(value) or not 0 < value <= LARGEST:
            raise InputError(f"l2 must be a number > 0 and at most {LARGEST:g}, not {value!r}.")
    if len(set(l2)) < len(l2):
        raise InputError(f"l2 must not repeat a value, not {list(l2)}.")


def check_folds(folds: Tensor, y: Tensor) -> None:
    """Raise :class:`InputError` unless each row has a fold, 0, 1, …, and there are two or more."""
    if folds.shape != y.shape or folds.dtype != torch.int64 or bool((folds < 0).any()):
        raise InputError(f"folds must be whole numbers >= 0, one for each of {len(y)} rows.")
    if int(folds.max()) < 1:
        raise InputError("folds must be 2 or more: a member learns from the others than its own.")


class _Solver:
    """Members in turn where not all logits fit, float32 and then float64, then the certificate."""

    def __init__(
        self, rows: Rows, l2: Tensor, fold: Tensor, gap: float, most: int, report: Report | None
    ) -> None:
        self.rows, self.l2, self.fold, self.gap, self.most = rows, l2, fold, gap, most
        self.report = report
        m, device = len(l2), l2.device
        self.W = torch.zeros(m, rows.k, rows.d, dtype=torch.float64, device=device)
        self.b = torch.zeros(m, rows.k, dtype=torch.float64, device=device)
        self.estimate = torch.full((m,), torch.inf, dtype=torch.float64, device=device)
        self.passes = torch.zeros(m, dtype=torch.int64, device=device)

    def run(self, start: tuple[Tensor, Tensor] | None) -> Path:
        self.fresh = start is None
        if start is not None:
            self._start_from(*start)
        double = self.rows.X.dtype == torch.float64
        C = Covariance.of(self.rows, torch.float64 if double else torch.float32)
        cost, gap = torch.full_like(self.l2, torch.nan), torch.full_like(self.l2, torch.inf)
        stuck = torch.zeros_like(gap, dtype=torch.bool)
        for exact, safety in ROUNDS:
            open_ = gap > self.gap if exact else (gap > self.gap) & ~stuck
            far = open_.nonzero().squeeze(1)
            if (double and not exact) or not len(far):
                continue
            C = C.double() if exact else C
            self._descend(far, C, self.gap * safety)
            stuck = self.estimate > self.gap * safety
            certificate = certify(self.rows, self.W[far], self.b[far], self.l2[far], far)
            cost[far], gap[far], self.b[far] = certificate
        return Path(self.l2, self.W, self.b, cost, gap, self.passes, self.fold)

    def _start_from(self, W: Tensor, b: Tensor) -> None:
        if W.shape != self.W.shape or b.shape != self.b.shape:
            raise InputError(
                f"start must be W {tuple(self.W.shape)} and b {tuple(self.b.shape)}, not "
                f"{tuple(W.shape)} and {tuple(b.shape)}."
            )
        if not bool(W.isfinite().all() and b.isfinite().all()):
            raise InputError("start must be finite: W or b is not.")
        self.W.copy_(W)
        self.b.copy_(b)

    def _descend(self, members: Tensor, C: Covariance, gap: float) -> None:
        """All that fit at once; of several groups the larger λ first, to start the next."""
        size = max(1, self.rows.at_once(_bytes(self.rows, C.mean.element_size())))
        if size < len(members):
            members = members[self.l2[members].argsort(descending=True, stable=True)]
        before = None
        for group in members.split(size):
            if before is not None and self.fresh and not bool(self.passes[group].any()):
                self.W[group], self.b[group] = self.W[before].clone(), self.b[before].clone()
            _Descent(self, group, C, gap).run()
            before = group[-1]

    def tell(self, members: Tensor, W: Tensor, b: Tensor, estimate: Tensor) -> Tensor:
        """Take over what a pass has found; the passes of these members (m,)."""
        self.W[members], self.b[members] = W, b
        self.estimate[members] = estimate
        self.passes[members] += 1
        if self.report is not None:
            self.report(Progress(self.W, self.b, self.estimate, self.passes))
        return self.passes[members]


def _bytes(rows: Rows, itemsize: int) -> float:
    """Of a member: Z and Zp, and the pairs of L-BFGS."""
    return itemsize * rows.k * (2.0 * rows.share + 2 * MEMORY * (rows.d + 1))


class Covariance:
    """C = mean (x - μ)(x - μ)ᵀ of a sample of rows: eigenvectors V (d, r), eigenvalues e (r,).

    All d of them, or, of fewer rows than features, as many as there are; in all other directions C
    is ``rest``.
    """

    def __init__(self, mean: Tensor, V: Tensor, e: Tensor, rest: float = 0.0) -> None:
        self.mean, self.V, self.e, self.rest = mean, V, e, rest

    @classmethod
    def of(cls, rows: Rows, dtype: torch.dtype) -> Covariance:
        """Decompose C of so many rows that it is close, and that it is done in seconds."""
        wide = rows.d > MOST_FEATURES
        some = rows.some(CURVATURE_ROWS if wide else max(SAMPLE * rows.d, CURVATURE_ROWS))
        total = torch.zeros(rows.d, dtype=torch.float64, device=rows.y.device)
        for _, X in some.chunks(rows.d, dtype):
            total += X.sum(0, dtype=torch.float64)
        mean = (some.total(total) / some.n).to(dtype)
        if some.n < rows.d:
            return cls._of_few(some, mean, some.n == rows.n)
        C = torch.zeros(rows.d, rows.d, dtype=dtype, device=mean.device)
        for _, X in some.chunks(rows.d, dtype):
            _add_square(C, X - mean)
        e, V = torch.linalg.eigh(some.total(C).div_(some.n))  # which reads the lower half
        return cls(mean, V, e.clamp_(min=0))

    @classmethod
    def _of_few(cls, some: Rows, mean: Tensor, whole: bool) -> Covariance:
        """By the Gram matrix (n, n): C and XXᵀ/n have the same eigenvalues but 0."""
        X = some.gathered(torch.cat([X for _, X in some.chunks(some.d, mean.dtype)])) - mean
        e, U = torch.linalg.eigh(X @ X.T / some.n)
        kept = e > 1e-6 * e[-1]
        e, U = e[kept], U[:, kept]
        rest = 0.0 if whole or not len(e) else float(e[0])
        return cls(mean, X.T @ (U / (e * some.n).sqrt()), e, rest)

    def double(self) -> Covariance:
        """The same in float64."""
        return Covariance(self.mean.double(), self.V.double(), self.e.double(), self.rest)

    def solve(self, A: Tensor, s: Tensor, damping: Tensor) -> Tensor:
        """``A (s C + damping I)⁻¹`` of A (m, k, d), with s (m, k, 1) and damping (m, 1, 1)."""
        inverse = 1 / (s * self.e + damping)
        R, rest = A @ self.V, 1 / (s * self.rest + damping)
        if len(self.V) == len(self.e):
            return (R * inverse) @ self.V.T
        return (R * (inverse - rest)) @ self.V.T + rest * A


def _add_square(C: Tensor, A: Tensor) -> None:
    """Add AᵀA to the lower half of C."""
    for start in range(0, len(C), BLOCK):
        stop = start + BLOCK
        C[start:stop, :stop].addmm_(A[:, start:stop].T, A[:, :stop])


class _Hessian:
    """S ⊗ C + 2λI of each member, and S of the bias; gradients are (m, k, d + 1), ∂b last."""

    def __init__(self, C: Covariance, S: Tensor, l2: Tensor) -> None:
        self.C, self.l2 = C, l2.to(S.dtype).view(-1, 1, 1)
        s, self.U = torch.linalg.eigh(S)
        self.s: Tensor = s.clamp(min=0).unsqueeze(2)  # (m, k, 1)

    def keep(self, kept: Tensor) -> None:
        """Some of the members."""
        self.l2, self.U, self.s = self.l2[kept], self.U[kept], self.s[kept]

    def of_bias(self, g: Tensor) -> Tensor:
        """``∂b S⁻¹ ∂b`` (m,): about twice what the bias can still lower the cost by."""
        turned: Tensor = self.U.mT @ g[..., -1:]
        return (turned.square() / self._of_bias()).sum((1, 2))

    def _of_bias(self) -> Tensor:
        result: Tensor = (self.s + 1e-6 * self.s[:, -1:]).clamp(min=1e-30)
        return result

    def solve(self, g: Tensor) -> Tensor:
        """``H⁻¹g``."""
        turned = self.U.mT @ g
        W = self.C.solve(turned[..., :-1], self.s, 2 * self.l2)
        b = turned[..., -1:] / self._of_bias()
        result: Tensor = self.U @ torch.cat([W, b], 2)
        result[..., -1] -= result[..., -1].mean(1, keepdim=True)  # adds nothing to any probability
        return result


class _History:
    """The last steps s and changes t of the gradient: L-BFGS's idea of the inverse Hessian."""

    def __init__(self, size: int) -> None:
        self.pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=size)

    def add(self, s: Tensor, t: Tensor) -> None:
        """A pair; one without curvature, of rounding alone, counts for nothing."""
        curvature = _dot(s, t)
        enough = curvature > 1e-12 * (_dot(s, s) * _dot(t, t)).sqrt()
        self.pairs.append((s, t, torch.where(enough, 1 / curvature, 0.0)))

    def keep(self, kept: Tensor) -> None:
        """Some of the members."""
        for _ in range(len(self.pairs)):
            s, t, ρ = self.pairs.popleft()
            self.pairs.append((s[kept], t[kept], ρ[kept]))

    def solve(self, g: Tensor, hessian: _Hessian) -> Tensor:
        """``H⁻¹g``, corrected by the pairs; Nocedal and Wright, algorithm 7.4."""
        q, α = g.clone(), []
        for s, t, ρ in reversed(self.pairs):
            α.append(ρ * _dot(s, q))
            q -= _times(α[-1], t)
        r = hessian.solve(q)
        for s, t, ρ in self.pairs:
            r += _times(α.pop() - ρ * _dot(t, r), s)
        return r


def _dot(A: Tensor, B: Tensor) -> Tensor:
    return (A * B).flatten(1).sum(1)


def _times(a: Tensor, A: Tensor) -> Tensor:
    return a.view(-1, 1, 1) * A


class _Descent:
    """Passes over the rows, of members that fit, until each has arrived.

    Inside, the bias is that of centred features, b + Wμ, which hardly depends on W. θ is (W, b),
    (m, k, d + 1), in float64; g, p and the logits (m, k, n) are in the dtype of C.
    """

    def __init__(self, solver: _Solver, members: Tensor, C: Covariance, gap: float) -> None:
        self.solver, self.rows, self.C, self.gap = solver, solver.rows, C, gap
        self.dtype = C.mean.dtype
        self.active, self.l2 = members, solver.l2[members]
        self.units = len(members) * self.rows.k
        self.every = max(1, self.rows.n // CURVATURE_ROWS)
        W, b = solver.W[members], solver.b[members]
        self.θ = torch.cat([W, (b + W @ self._mean).unsqueeze(2)], 2)
        fits = self.rows.at_once(_bytes(self.rows, self.dtype.itemsize)) > 0
        self.keeps_step, self.history = fits, _History(MEMORY if fits else MEMORY // 2)
        self.Z = [Z for _, Z in self._products(self.θ)]
        self.Zp: list[tuple[slice, Tensor]] = []
        self.best = torch.full_like(self.l2, torch.inf)
        self.since = torch.zeros_like(members)

    def run(self) -> None:
        """Descend; the solver hears of every pass."""
        g, S = self._gradient()
        while True:
            hessian = _Hessian(self.C, S, self.l2)
            there = self._arrived(g, hessian)
            if bool(there.any()):
                self._keep(~there)
                hessian.keep(~there)
                g = g[~there]
            if not len(self.active):
                return
            p = self._direction(g, hessian)
            self.Zp = list(self._products(p)) if self.keeps_step else []
            step = self._length(p, _dot(g, p).double())
            self._move(p, step)
            last = g
            g, S = self._gradient()
            self.history.add(_times(step.to(p.dtype), p), g - last)

    @property
    def _mean(self) -> Tensor:
        return self.C.mean.double()

    def _products(self, θ: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their products with weights and biases (m, k, n): logits, or those of a step."""
        W, b = θ[..., :-1], θ[..., -1] - θ[..., :-1] @ self._mean.to(θ.dtype)
        W, b = W.to(self.dtype).contiguous(), b.to(self.dtype)
        for at, X in self.rows.chunks(self.units, self.dtype):
            yield at, formulas.affine(X, W, b).mT

    def _steps(self, p: Tensor) -> Iterator[tuple[slice, Tensor]]:
        return iter(self.Zp) if self.keeps_step else self._products(p)

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """∂J/∂θ (m, k, d + 1), and S (m, k, k) of a sample of the rows."""
        m, k, d = len(self.active), self.rows.k, self.rows.d
        g = self.θ.new_zeros(m, k, d, dtype=self.dtype)
        g_b = self.θ.new_zeros(m, k, dtype=self.dtype)
        S = self.θ.new_zeros(m, k, k, dtype=self.dtype)
        for (at, X), Z in zip(self.rows.chunks(self.units, self.dtype), self.Z, strict=True):
            G = formulas.residual(Z.mT, self.rows.y[at], 1.0).mT
            G *= self.rows.weight(at, self.active, self.dtype)
            g_b += G.sum(2)
            formulas.combine(g, G.mT, X, 1, 1.0, out=g)
            P = Z.index_select(2, spread(Z.shape[2], self.every, Z.device)).softmax(1)
            S.baddbmm_(P, P.mT, alpha=-1).diagonal(dim1=1, dim2=2).add_(P.sum(2))
        self.rows.totals(g, g_b, S)
        g -= g_b.unsqueeze(2) * self.C.mean
        g += (2 * self.l2.view(-1, 1, 1) * self.θ[..., :-1]).to(self.dtype)
        return torch.cat([g, g_b.unsqueeze(2)], 2), S * (self.every / self.rows.n)

    def _arrived(self, g: Tensor, hessian: _Hessian) -> Tensor:
        """Which members need no further pass, bool (m,), or have none left; tells the solver."""
        estimate = g[..., :-1].double().square().sum((1, 2)) / (4 * self.l2)
        estimate += hessian.of_bias(g).double() / 2
        better = estimate < 0.9 * self.best
        self.best = torch.minimum(self.best, estimate)
        self.since = torch.where(better, 0, self.since + 1)
        W = self.θ[..., :-1]
        passes = self.solver.tell(self.active, W, self.θ[..., -1] - W @ self._mean, estimate)
        return (
            (estimate <= self.gap)
            | (self.since > PATIENCE[self.dtype])
            | (passes >= self.solver.most)
        )

    def _keep(self, kept: Tensor) -> None:
        """Some of the members; the others leave every product."""
        self.active, self.l2, self.θ = self.active[kept], self.l2[kept], self.θ[kept]
        self.best, self.since = self.best[kept], self.since[kept]
        self.history.keep(kept)
        for i, Z in enumerate(self.Z):
            self.Z[i] = Z[kept]

    def _direction(self, g: Tensor, hessian: _Hessian) -> Tensor:
        """Where to, (m, k, d + 1): L-BFGS's, or -H⁻¹g where rounding has made that point uphill."""
        p = -self.history.solve(g, hessian)
        uphill = ~(_dot(g, p) < 0)
        if p.device.type == "cpu" and not bool(uphill.any()):
            return p
        return torch.where(uphill.view(-1, 1, 1), -hessian.solve(g), p)

    def _length(self, p: Tensor, slope0: Tensor) -> Tensor:
        """Each member's step along p to the least cost (m,): Newton's method in one unknown."""
        P = p[..., :-1].double()
        rise, bend = 2 * self.l2 * _dot(self.θ[..., :-1], P), 2 * self.l2 * _dot(P, P)
        t, low, high = torch.ones_like(rise), torch.zeros_like(rise), torch.full_like(rise, 1e9)
        for _ in range(STEPS if p.device.type == "cpu" else DEVICE_STEPS):
            slope, curvature = self._slope(p, t)
            slope, curvature = slope + rise + t * bend, curvature + bend
            low, high = torch.where(slope < 0, t, low), torch.where(slope > 0, t, high)
            newton = t - slope / curvature
            inside = (newton > low) & (newton < high)
            t = torch.where(inside, newton, torch.minimum((low + high) / 2, 2 * low + 1e-3))
            if p.device.type == "cpu" and bool((slope.abs() <= NEAR * slope0.abs()).all()):
                break
        return t

    def _slope(self, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative (m,) of the mean loss along p at t: sums over kept logits."""
        sums = t.new_zeros(2, len(t))
        t_ = t.to(self.dtype).view(-1, 1, 1)
        for (at, Zp), Z in zip(self._steps(p), self.Z, strict=True):
            w, y = self.rows.weight(at, self.active, self.dtype), self.rows.y[at]
            Q = torch.addcmul(Z, Zp, t_).softmax(1).mul_(Zp)
            mean = Q.sum(1, keepdim=True)
            of_label = Zp.gather(1, y.expand(len(t), 1, -1))
            sums[0] += ((mean - of_label) * w).sum((1, 2))
            Q *= w
            sums[1] += torch.bmm(Q.view(len(t), 1, -1), Zp.view(len(t), -1, 1)).view(-1)
            sums[1] -= (mean.square_() * w).sum((1, 2))
        slope, curvature = self.rows.total(sums)
        return slope, curvature

    def _move(self, p: Tensor, step: Tensor) -> None:
        self.θ += _times(step, p.double())
        for (_, Zp), Z in zip(self._steps(p), self.Z, strict=True):
            Z.addcmul_(Zp, _times(step.to(self.dtype), Zp.new_ones(1)))

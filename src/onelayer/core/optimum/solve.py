r"""The minimum of the linear softmax layer's cost, for every λ at once, each with a certificate.

The cost of each member is convex for λ > 0; :mod:`onelayer.core.optimum.certificate` bounds how far
from its minimum a network is. All members share each product with X. They are solved in rounds:
L-BFGS in float32, then in float64 where the gap asked for needs it, then Newton's method. Each
round ends with the certificate, and certified members leave.

- L-BFGS is preconditioned by the curvature of :mod:`~onelayer.core.optimum.curvature`.
- Steps never raise the cost. Logits are linear in the step: with Z = XWᵀ + b and Zp = XPᵀ + p kept,
  slope and curvature along a step are sums over (m, k, n) numbers, without another product.
- An iteration is two products, XPᵀ and GᵀX; one of Newton's method also solves for its direction.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onelayer.core.checks import check_positive, check_whole
from onelayer.core.errors import InputError, TrainingError
from onelayer.core.optimum.certificate import Certificate, certify
from onelayer.core.optimum.curvature import Covariance
from onelayer.core.optimum.data import Samples, check_samples
from onelayer.core.optimum.descent import Descent, member_bytes
from onelayer.core.optimum.polish import is_polished, polish
from onelayer.core.optimum.population import check_l2, population

POLISHED = 1e-10  # gap from which Newton's full steps go on
ROUNDING = 1e-14  # relative difference of two costs that counts as none


class Round(NamedTuple):
    """How the members that are not certified yet go on."""

    exact: bool  # in float64
    newton: bool  # by Newton's method instead of L-BFGS
    safety: float  # share of the gap at which a member leaves, by its estimate
    patience: int  # iterations without a smaller estimate after which a member leaves
    most: int  # iterations


ROUNDS = (
    Round(exact=False, newton=False, safety=0.2, patience=20, most=150),
    Round(exact=False, newton=False, safety=0.1, patience=20, most=50),
    Round(exact=True, newton=False, safety=0.5, patience=20, most=120),
    *(Round(True, True, safety, 15, 1000) for safety in (0.2, 1e-2, 1e-4, 1e-6, 1e-8)),
)


@dataclass(frozen=True)
class Optima:
    """Members in the order of λ as asked for; with folds, those of the first fold first.

    ``W`` (m, k, d) and ``b`` (m, k) in float64; ``cost`` J; ``gap``, at least what J lies above its
    minimum; ``iterations``; ``fold`` that a member did not learn from, -1 for none; all (m,).
    """

    l2: Tensor
    W: Tensor
    b: Tensor
    cost: Tensor
    gap: Tensor
    iterations: Tensor
    fold: Tensor


@dataclass(frozen=True)
class Progress:
    """The state of a solve: W, b, gap and iterations of each member.

    After an iteration gaps are estimates. After a round, ``round`` is the number of rounds done and
    costs and gaps are certified: ``solve(state=…)`` goes on from there, with the same bits.
    """

    W: Tensor
    b: Tensor
    gap: Tensor
    iterations: Tensor
    cost: Tensor
    stuck: Tensor  # members for which another round of the same kind is of no use
    round: int | None = None


Report = Callable[[Progress], None]


def solve(
    X: Any,
    y: Tensor,
    l2: float | Sequence[float] | Tensor,
    gap: float = 1e-6,
    *,
    weight: Tensor | None = None,
    folds: Tensor | None = None,
    bias: bool = True,
    polished: bool = False,
    start: tuple[Tensor, Tensor] | None = None,
    state: Progress | None = None,
    max_iterations: int = 1000,
    shared: bool = False,
    report: Report | None = None,
) -> Optima:
    r"""Minimise the cost ``J`` of linear softmax layers, one for each λ, to a certified gap.

    .. math:: J(W, b) = \frac{\sum_n w_n \ell_n}{\sum_n w_n} + \lambda \|W\|^2, \quad
        \ell_n = -\log \mathrm{softmax}(x_n W^T + b)_{y_n}

    Args:
        X: features (n, d), floating point: a tensor, or anything with a tensor's ``shape``,
            ``dtype``, ``device``, ``split`` and ``index_select``, such as a mapped file.
        y: labels (n,), int64, from 0 to k - 1; each class has a sample.
        l2: λ of each member, above 0; scikit-learn's C is 1 / (2 λ Σw).
        gap: largest distance of a cost to its minimum.
        weight: weights w of the samples, not negative: (n,) for all members, or (m, n), one row
            for each member. With (m, n), ``l2`` lists m λ or one for all. Default: 1 each.
        folds: fold of each sample (n,), from 0. For each fold and each λ, a member learns from the
            other folds: its weights are 0 in its own fold.
        bias: whether there is a bias b; otherwise it stays 0.
        polished: whether small problems end with Newton's steps in float64, until rounding is all
            that is left of the gradient. Weights then agree with other solvers' in all digits.
        start: W (m, k, d) and b (m, k) to start from; default zeros.
        state: a report after a round, to go on from.
        max_iterations: limit for each member; if it does not suffice, the gap says so.
        shared: X and y are this process's shard, and every process of torch.distributed calls this
            function: sums are added over all of them.
        report: called after every iteration and every round.

    Returns:
        :class:`Optima`, on the device of X. Every gap is finite. The same input with the same
        number of threads gives the same bits.

    Raises:
        InputError: naming the argument: a λ that is not above 0, a feature that is not finite,
            a negative weight, a class whose samples have no weight.
        TrainingError: the numbers of a member overflow float64.

    Warns:
        UserWarning: a gap is larger than the one asked for.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> X, y = torch.randn(90, 4, generator=g), torch.arange(90) % 3
        >>> optima = solve(X, y, l2=[0.01, 0.1])
        >>> optima.W.shape, bool((optima.gap <= 1e-6).all())
        (torch.Size([2, 3, 4]), True)

    Source: the module's equations.
    """
    l2 = l2.tolist() if isinstance(l2, Tensor) else l2
    l2 = list(l2) if isinstance(l2, Sequence) else [l2]
    check_l2(l2, repeated=getattr(weight, "ndim", 1) == 2)
    check_positive("gap", gap)
    check_whole("max_iterations", max_iterations, 1)
    check_samples(X, y)
    y = y.to(X.device)
    members = population(y, len(l2), weight, folds, shared)
    λ = torch.tensor(l2, dtype=torch.float64, device=y.device)
    λ = λ.repeat(len(members.fold) // len(l2))
    samples = Samples(
        X, y, weights=members.weights, row=members.row, shared=shared, bias=bias,
        groups="member" if folds is None else "fold",
    )  # fmt: skip
    with torch.no_grad():
        small = polished and is_polished(samples)
        asked = min(gap, POLISHED) if small else gap
        solver = _Solver(samples, λ, members.fold, asked, max_iterations, report)
        solver.run(start, state)
        if small:
            solver.polish()
        optima = solver.optima()
    _warn_of_gaps(optima, gap)
    return optima


def _warn_of_gaps(optima: Optima, gap: float) -> None:
    far = ~(optima.gap <= gap)
    if bool(far.any()):
        largest = int(torch.where(far, optima.gap, 0.0).argmax())
        warnings.warn(
            f"{int(far.sum())} of {len(far)} networks kept a larger gap than {gap:g}: the largest "
            f"is {float(optima.gap[largest]):.1e}, at l2 = {float(optima.l2[largest]):g}. Allow "
            "a larger gap or more iterations, or scale the features.",
            stacklevel=3,
        )


class _Solver:
    """Rounds of iterations, each followed by the certificate.

    W, b, cost and gap are those of the last certificate that did not raise the cost; ``found`` is
    what the iterations of this round have found.
    """

    def __init__(
        self,
        samples: Samples,
        l2: Tensor,
        fold: Tensor,
        gap: float,
        limit: int,
        report: Report | None,
    ) -> None:
        self.samples, self.l2, self.fold, self.gap = samples, l2, fold, gap
        self.limit, self.report = limit, report
        m, device = len(l2), l2.device
        self.W = torch.zeros(m, samples.k, samples.d, dtype=torch.float64, device=device)
        shares = samples.class_shares(torch.arange(m, device=device)).log()
        self.b = shares - shares.mean(1, keepdim=True)  # the best bias for W = 0
        self.b *= samples.bias
        self.cost, self.gaps = (torch.full_like(l2, torch.inf) for _ in range(2))
        self.estimate = torch.full_like(l2, torch.inf)
        self.stuck = torch.zeros(m, dtype=torch.bool, device=device)
        self.iterations = torch.zeros(m, dtype=torch.int64, device=device)
        self.fresh = True
        self.found = self.W, self.b  # of the round at hand
        self.direction: Tensor | None = None

    def run(self, start: tuple[Tensor, Tensor] | None, state: Progress | None) -> None:
        """Return once all are certified, or no round is left."""
        done = 0
        if state is not None and state.round is not None:
            done = self._restore(state)
        elif start is not None:
            self._start_from(*start)
            self._certify(torch.arange(len(self.l2), device=self.l2.device))
        double = self.samples.X.dtype == torch.float64
        C = Covariance.of(self.samples, torch.float64 if double else torch.float32)
        for number, way in enumerate(ROUNDS):
            if number < done or (double and not way.exact):
                continue
            open_ = ~(self.gaps <= self.gap) & (self.iterations < self.limit)
            again = number > 0 and way[:2] == ROUNDS[number - 1][:2]
            far = (open_ & ~self.stuck if again else open_).nonzero().squeeze(1)
            if len(far):
                before = self.gaps[far]
                self._descend(far, C.double() if way.exact else C, way)
                arrived = self.estimate[far] <= self.gap * way.safety
                self._certify(far)
                # Newton's method ends where rounding ends it: the next round would find the same.
                arrived |= way.newton & (self.gaps[far] <= before / 2)
                self.stuck[far] = ~arrived
            self._report(number + 1)

    def polish(self) -> None:
        """Remove what is left of the gradients; keep a member whose numbers overflow as it is."""
        members = torch.arange(len(self.l2), device=self.l2.device)
        W, b, direction = polish(self.samples, self.W, self.b, self.l2, members)
        fine = torch.cat([W, direction], 2).flatten(1).isfinite().all(1) & b.isfinite().all(1)
        members, W, b, direction = members[fine], W[fine], b[fine], direction[fine]
        l2 = self.l2[members]
        own = certify(self.samples, W, b, l2, members)
        along = certify(self.samples, W, b, l2, members, direction)
        self.W[members], self.b[members], self.cost[members] = W, b, own.cost
        self.gaps[members] = torch.fmin(own.gap, along.gap)

    def optima(self) -> Optima:
        """Return the members; raise :class:`TrainingError` where no gap is known."""
        self._check_finite()
        return Optima(self.l2, self.W, self.b, self.cost, self.gaps, self.iterations, self.fold)

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
        self.fresh = False

    def _restore(self, state: Progress) -> int:
        self._start_from(state.W, state.b)
        self.cost.copy_(state.cost)
        self.gaps.copy_(state.gap)
        self.iterations.copy_(state.iterations)
        self.stuck.copy_(state.stuck)
        assert state.round is not None
        return state.round

    def _descend(self, members: Tensor, C: Covariance, way: Round) -> None:
        """Descend with all members that fit at once; of several groups, larger λ start smaller."""
        dtype = torch.float64 if way.exact else torch.float32
        size = max(1, self.samples.at_once(member_bytes(self.samples, dtype.itemsize)))
        if size < len(members):
            members = members[self.l2[members].argsort(descending=True, stable=True)]
        self.found = self.W.clone(), self.b.clone()
        W, b = self.found
        self.direction = W.new_zeros(*W.shape[:2], W.shape[2] + 1) if way.newton else None
        before = None
        for group in members.split(size):
            if before is not None and self.fresh and not bool(self.iterations[group].any()):
                W[group], b[group] = W[before].clone(), b[before].clone()
            Descent(
                self, group, W[group], b[group], C, dtype,
                self.gap * way.safety, way.patience, self.limit, way.most, way.newton,
            ).run()  # fmt: skip
            before = group[-1]

    def record(
        self, members: Tensor, W: Tensor, b: Tensor, estimate: Tensor, direction: Tensor | None
    ) -> Tensor:
        """Take the state of some members after an iteration; return their iterations so far."""
        self.found[0][members], self.found[1][members] = W, b
        if direction is not None and self.direction is not None:
            self.direction[members] = direction
        self.estimate[members] = estimate
        self.iterations[members] += 1
        self._report(None)
        return self.iterations[members]

    def _certify(self, members: Tensor) -> None:
        """Certify what was found, and keep it where it does not raise the cost."""
        W, b = (T[members] for T in self.found)
        found = certify(self.samples, W, b, self.l2[members], members)
        self._keep_better(members, W, found)
        if self.direction is None:
            return
        far = ~(self.gaps[members] <= self.gap)
        mine = members[far]
        if len(mine):
            direction = self.direction[mine]
            found = certify(self.samples, W[far], found.bias[far], self.l2[mine], mine, direction)
            self._keep_better(mine, W[far], found)

    def _keep_better(self, members: Tensor, W: Tensor, found: Certificate) -> None:
        cost, gap = found.cost - found.excess, (found.gap - found.excess).clamp(min=0)
        before = self.cost[members]
        better = cost <= before + ROUNDING * before.abs().clamp(min=1)
        better &= (gap <= self.gaps[members]) | (cost < before)
        kept = members[better]
        self.W[kept], self.b[kept] = W[better], found.bias[better]
        self.cost[kept], self.gaps[kept] = cost[better], gap[better]

    def _report(self, number: int | None) -> None:
        if self.report is None:
            return
        W, b = (self.W, self.b) if number is not None else self.found
        gap = self.gaps if number is not None else torch.minimum(self.gaps, self.estimate)
        self.report(Progress(W, b, gap, self.iterations, self.cost, self.stuck, number))

    def _check_finite(self) -> None:
        bad = ~(self.gaps.isfinite() & self.cost.isfinite())
        if bool(bad.any()):
            member = int(bad.nonzero()[0])
            fold = int(self.fold[member])
            where = "" if fold < 0 else f", without fold {fold}"
            raise TrainingError(
                f"no gap can be certified at l2 = {float(self.l2[member]):g}{where}: the numbers "
                "overflow float64. Scale the features, for example to a deviation of 1."
            )

"""The analytic gradient against independent judges.

Four of them: torch's own autograd on torch's own layers, one-sided and central differences of the
cost, and :func:`torch.autograd.gradcheck`. Every entry of every W and b is compared, for one member
and for several, each with its own λ and its own upstream gradient. Two more checks follow: one with
dropout and label smoothing, and one with weights of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onelayer.core.autograd import cost
from onelayer.core.network import parameter_shapes

BOUNDS = {"autograd": 1e-12, "one-sided": 1e-3, "central": 1e-6}
"""Largest relative error by judge (the report has 1e-14 and, one-sided, 1e-4)."""

STEP = 1e-5  # h of the difference quotients, as in the report
KINK = 1e-3  # smallest distance of a hidden unit's input from the ReLU's kink: 100 steps

SMALL = 0.01
"""Smallest entry of the gradient, relative to the cost's curvature along it. Exactly 0 is allowed,
as for a unit that is off. A smaller entry would compare rounding errors."""

L2 = (0.1, 0.3, 1.0)  # λ of the members, large enough that a wrong factor shows in every entry


class Regularised(NamedTuple):
    """Dropout's mask (n, h) of one member, s of label smoothing, weights of the samples (n,)."""

    mask: Tensor | None = None
    smoothing: float = 0.0
    weight: Tensor | None = None


PLAIN = Regularised()


@dataclass(frozen=True)
class Check:
    """One line of the table: the largest relative error over all entries of one parameter."""

    network: str
    members: int
    parameter: str
    judge: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Return whether the error is within its bound; NaN is not."""
        return self.error <= self.bound

    @property
    def words(self) -> tuple[str, str]:
        """Error and bound as tables show them; torch's own check gives no number."""
        if self.judge == "torch gradcheck":
            return ("passed" if self.passed else "FAILED"), "passes"
        return f"{self.error:.1e}", f"{self.bound:.0e}"


def relative_error(a: Tensor, b: Tensor, eps: float = 1e-9) -> float:
    """``max |a - b| / max(eps, |a| + |b|)`` over all entries (DD2424, assignment 1)."""
    return float(((a - b).abs() / (a.abs() + b.abs()).clamp(min=eps)).max())


def check_gradients(
    X: Tensor,
    y: Tensor,
    hidden: int = 50,
    members: Sequence[int] = (1, 3),
    seed: int = 0,
    dropout: float = 0.2,
    label_smoothing: float = 0.1,
) -> list[Check]:
    """Check both networks on a batch, for populations of each size in ``members``.

    The largest population is also checked with dropout and label smoothing, and with weights.

    Args:
        X: features (n, d) in float64.
        y: labels (n,), 0 to 9.
        hidden: hidden units of the second network; the first is linear.
        members: sizes of populations.
        seed: seed of the weights, masks, sample weights and upstream gradients.
        dropout: probability p of the regularised networks.
        label_smoothing: s of the regularised networks.
    """
    plain = [
        check for h in (0, hidden) for m in members for check in _check_network(X, y, h, m, seed)
    ]
    most = max(members)
    regularised = [
        check
        for h in (0, hidden)
        for check in _check_network(X, y, h, most, seed, dropout, label_smoothing)
    ]
    weighted = [
        check for h in (0, hidden) for check in _check_network(X, y, h, most, seed, weighted=True)
    ]
    return plain + regularised + weighted


def _check_network(
    X: Tensor,
    y: Tensor,
    hidden: int,
    m: int,
    seed: int,
    p: float = 0.0,
    smoothing: float = 0.0,
    weighted: bool = False,
) -> Iterator[Check]:
    generator = torch.Generator().manual_seed(seed)
    l2 = torch.tensor([L2[i % len(L2)] for i in range(m)], dtype=X.dtype)
    mask = None
    if p and hidden:
        drawn = torch.rand(m, len(X), hidden, dtype=X.dtype, generator=generator)
        mask = (drawn >= p).to(X.dtype) / (1 - p)
    weight = None
    if weighted:  # of each member, from 0 to 2; some samples are left out
        drawn = torch.rand(m, len(X), dtype=X.dtype, generator=generator)
        weight = 2.5 * (drawn - 0.2).clamp(min=0)
    with_each = [
        Regularised(
            None if mask is None else mask[i], smoothing, None if weight is None else weight[i]
        )
        for i in range(m)
    ]
    members = [
        comparable_parameters(X, y, hidden, float(l2[i]), generator, with_each[i]) for i in range(m)
    ]
    stacked = {name: torch.stack([p[name] for p in members]) for name in members[0]}
    parameters = {name: p.requires_grad_() for name, p in stacked.items()}
    # Members differ in their upstream gradient, so a backward that ignores it fails.
    upstream = 0.5 + torch.rand(m, dtype=X.dtype, generator=generator)
    network = f"hidden {hidden}" if hidden else "linear"
    network += (f", p={p:g}" if mask is not None else "") + (
        f", s={smoothing:g}" if smoothing else ""
    )
    network += ", weighted" if weighted else ""

    def our_cost(*parameters: Tensor) -> Tensor:
        return cost(X, y, parameters, l2, label_smoothing=smoothing, mask=mask, weight=weight)

    ours = _gradients((upstream * our_cost(*parameters.values())).sum(), parameters)
    judges: dict[str, Callable[..., dict[str, Tensor]]] = {
        "autograd": _by_autograd,
        "one-sided": partial(_by_differences, below=0.0),
        "central": partial(_by_differences, below=STEP),
    }
    for judge, judgement in judges.items():
        theirs = [judgement(X, y, one, float(l2[i]), with_each[i]) for i, one in enumerate(members)]
        for name, gradient in ours.items():
            expected = torch.stack([upstream[i] * g[name] for i, g in enumerate(theirs)])
            yield Check(network, m, name, judge, relative_error(gradient, expected), BOUNDS[judge])

    failed = not torch.autograd.gradcheck(
        our_cost,
        tuple(parameters.values()),
        raise_exception=False,
        fast_mode=True,  # along random directions: every entry is compared above
    )
    yield Check(network, m, "all", "torch gradcheck", float(failed), 0.0)


def comparable_parameters(
    X: Tensor,
    y: Tensor,
    hidden: int,
    l2: float,
    generator: torch.Generator,
    regularised: Regularised = PLAIN,
) -> dict[str, Tensor]:
    """Draw random parameters of one member at which gradients can be compared.

    Two kinds of points cannot be used. Within ``KINK`` of a ReLU's kink a difference straddles two
    slopes. Where an entry of the gradient is nearly 0, its relative error is only rounding. Such
    entries are moved until none is left, by torch's gradient, not ours.
    """
    while True:
        parameters = {
            name: torch.randn(shape, dtype=X.dtype, generator=generator) * shape[-1] ** -0.5
            for name, shape in parameter_shapes(hidden, X.shape[1]).items()
        }
        for _ in range(20):  # usually a few suffice; otherwise draw again
            if not _move(X, y, parameters, l2, regularised):
                return parameters


def _move(
    X: Tensor, y: Tensor, parameters: dict[str, Tensor], l2: float, regularised: Regularised
) -> bool:
    """Move entries that are too close to a kink or to a gradient of 0; return whether any were.

    Along one entry the cost is convex between kinks, so a step along the gradient enlarges it.
    """
    moved = False
    for name, g in _by_autograd(X, y, parameters, l2, regularised).items():
        curvature = 0.1 + 2 * l2 if g.ndim == 2 else 0.05  # of the data term: about 0.05 to 0.1
        small = (g != 0) & (g.abs() < SMALL * curvature)
        parameters[name] += 2 * SMALL * small * g.sign()
        moved |= bool(small.any())
    if "W1" in parameters:
        close = (F.linear(X, parameters["W1"], parameters["b1"]).abs() < KINK).any(0)
        parameters["b1"] += KINK * close
        moved |= bool(close.any())
    return moved


def _member_cost(
    X: Tensor, y: Tensor, parameters: Mapping[str, Tensor], l2: float, regularised: Regularised
) -> Tensor:
    """Return one member's cost by torch's own layers, which share no code with formulas."""
    *hidden, W, b = parameters.values()
    H = F.relu(F.linear(X, *hidden)) if hidden else X
    if regularised.mask is not None:
        H = H * regularised.mask
    Z, smoothing, w = F.linear(H, W, b), regularised.smoothing, regularised.weight
    if w is None:
        loss = F.cross_entropy(Z, y, label_smoothing=smoothing)
    else:
        losses = F.cross_entropy(Z, y, label_smoothing=smoothing, reduction="none")
        loss = (w * losses).sum() / w.sum()
    return loss + l2 * sum(w.pow(2).sum() for w in [W, *hidden[:1]])


def _by_autograd(
    X: Tensor, y: Tensor, parameters: Mapping[str, Tensor], l2: float, regularised: Regularised
) -> dict[str, Tensor]:
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    return _gradients(_member_cost(X, y, leaves, l2, regularised), leaves)


def _by_differences(
    X: Tensor,
    y: Tensor,
    parameters: Mapping[str, Tensor],
    l2: float,
    regularised: Regularised,
    below: float,
) -> dict[str, Tensor]:
    """Return ``(J(θ + h) - J(θ - below)) / (h + below)`` for every entry of every parameter.

    An entry is shifted even if ``below`` is 0, so that both costs are rounded alike.
    """
    above = _shifted_costs(X, y, parameters, l2, regularised, STEP)
    other = _shifted_costs(X, y, parameters, l2, regularised, -below)
    return {name: (above[name] - other[name]) / (STEP + below) for name in parameters}


def _shifted_costs(
    X: Tensor,
    y: Tensor,
    parameters: Mapping[str, Tensor],
    l2: float,
    regularised: Regularised,
    step: float,
) -> dict[str, Tensor]:
    """Yield the cost with one entry shifted by ``step``, for every entry of every parameter."""
    result = {}
    for name, parameter in parameters.items():

        def shifted(shift: Tensor, name: str = name, parameter: Tensor = parameter) -> Tensor:
            return _member_cost(X, y, {**parameters, name: parameter + shift}, l2, regularised)

        shifts = step * torch.eye(parameter.numel(), dtype=parameter.dtype)
        costs = torch.vmap(shifted, chunk_size=256)(shifts.view(-1, *parameter.shape))
        result[name] = costs.view(parameter.shape)
    return result


def _gradients(value: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))


def format_table(checks: Sequence[Check]) -> str:
    """Return the checks as a text table, one line each."""
    wide = max(len(c.network) for c in checks)
    head = f"{'network':<{wide}}  m  parameter  against          rel. error   bound"
    lines = [
        f"{c.network:<{wide}}  {c.members}  {c.parameter:<9}  {c.judge:<15}  {c.words[0]:>10}"
        f"  {c.words[1]:>6}  {'ok' if c.passed else 'MISSED'}"
        for c in checks
    ]
    return "\n".join([head, *lines])


class Pair(NamedTuple):
    """One entry of the gradient, by the formula and by central differences."""

    entry: str  # such as W[3, 7]
    analytic: float
    numerical: float

    @property
    def error(self) -> float:
        """The relative error."""
        a, b = (torch.tensor(value, dtype=torch.float64) for value in self[1:])
        return relative_error(a, b)


def show_pairs(X: Tensor, y: Tensor, hidden: int, seed: int = 0, count: int = 10) -> list[Pair]:
    """Return entries of one network's gradient, spread over all its parameters.

    Args:
        X: (n, d) in float64.
        y: (n,).
        hidden: units; 0 is the linear network.
        seed: of the weights and of the choice of entries.
        count: how many entries.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = comparable_parameters(X, y, hidden, L2[0], generator)
    leaves = {name: p[None].requires_grad_() for name, p in parameters.items()}
    l2 = torch.tensor(L2[:1], dtype=X.dtype)
    ours = _gradients(cost(X, y, list(leaves.values()), l2).sum(), leaves)
    theirs = _by_differences(X, y, parameters, L2[0], PLAIN, below=STEP)
    orders = {name: torch.randperm(p.numel(), generator=generator) for name, p in leaves.items()}
    pairs = []
    for i in range(count):
        name, turn = list(parameters)[i % len(parameters)], i // len(parameters)
        at = [int(k) for k in torch.unravel_index(orders[name][turn], parameters[name].shape)]
        values = float(ours[name][0][tuple(at)]), float(theirs[name][tuple(at)])
        pairs.append(Pair(f"{name}[{', '.join(map(str, at))}]", *values))
    return pairs


def format_pairs(pairs: Sequence[Pair]) -> str:
    """Return the pairs as a text table, with the relative error of each."""
    head = f"{'entry':<12} {'analytic':>16} {'numerical':>16}  rel. error"
    lines = [
        f"{p.entry:<12} {p.analytic:>16.10f} {p.numerical:>16.10f}  {p.error:>10.1e}" for p in pairs
    ]
    return "\n".join([head, *lines])

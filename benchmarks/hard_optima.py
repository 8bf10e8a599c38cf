"""Hard problems for ``onelayer.solve``, each judged in float64 by scipy.

Few and many classes, features and samples; rare classes; constant, repeated and nearly collinear
columns; columns of very different scales; penalties from 1e-8 to 1e3; float32 and float64; folds
and warm starts. For every network the cost must be the one that numpy computes, the gap must be at
least what scipy still gains and at most what was asked, and the iterations must be within a limit.

Run as ``python -m benchmarks.hard_optima --number 600``; ``tests/core/test_hard_optima.py`` runs a
few of the same problems.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from onelayer.core.optimum.solve import Optima, solve

GAP = 1e-6
LIMIT = 300  # iterations of a network
SHARES = ("balanced", "1/rank", "1/rank²", "one dominates", "1:1000")
COLUMNS = ("plain", "constant", "repeated", "collinear", "scaled", "one large", "shifted")


@dataclass(frozen=True)
class Problem:
    """X (n, d), y (n,), one λ or several, and what makes it hard, in words."""

    number: int
    X: Tensor
    y: Tensor
    l2: list[float]
    folds: Tensor | None
    start: tuple[Tensor, Tensor] | None
    words: str


@dataclass
class Verdict:
    """What one problem's networks were found to be; ``faults`` is empty where all is well."""

    problem: Problem
    seconds: float = 0.0
    iterations: int = 0
    gap: float = 0.0
    faults: list[str] = field(default_factory=list)


def problem(number: int, seed: int = 0, largest: int = 5000) -> Problem:
    """Make one problem: a pure function of its number and the seed.

    Args:
        number: of the problem.
        seed: of all problems.
        largest: most samples.
    """
    draw = np.random.default_rng([seed, number])
    k = int(np.exp(draw.uniform(np.log(2), np.log(100.99))))
    d = int(np.exp(draw.uniform(0, np.log(300.99))))
    n = int(np.exp(draw.uniform(np.log(5), np.log(largest + 0.99))))
    folded = draw.random() < 0.15
    k = max(2, min(k, n // 4 if folded else n // 2))
    n = max(n, 8 if folded else 5)
    shares = str(draw.choice(SHARES))
    y = _labels(draw, n, k, shares, least=3 if folded else 1)
    X = draw.standard_normal((n, d))
    spread = float(draw.choice([0.0, 0.25, 1.0, 4.0]))
    X += spread * draw.standard_normal((k, d))[y] / np.sqrt(d)
    columns = str(draw.choice(COLUMNS))
    X = _changed(draw, X, columns)
    dtype = torch.float32 if draw.random() < 0.5 else torch.float64
    l2 = sorted({float(10 ** draw.uniform(-8, 3)) for _ in range(int(draw.integers(1, 4)))})
    labels = torch.from_numpy(y)
    folds = _folds(labels) if folded else None
    start, warm = None, draw.random() < 0.2
    if warm:
        scale = float(draw.choice([0.1, 0.3, 1.0, 3.0])) / np.abs(X).max(0).clip(1)
        members = len(l2) * (1 if folds is None else int(folds.max()) + 1)
        W = draw.standard_normal((members, k, X.shape[1])) * scale
        start = torch.from_numpy(W), torch.from_numpy(draw.standard_normal((members, k)))
    words = (
        f"k={k} d={d} n={n} {shares}, separation {spread:g}, {columns} columns, "
        f"{str(dtype)[6:]}, λ = {', '.join(f'{v:.1e}' for v in l2)}"
        + (", folds" if folded else "") + (", warm start" if warm else "")
    )  # fmt: skip
    return Problem(number, torch.from_numpy(X).to(dtype), labels, l2, folds, start, words)


def _labels(draw: np.random.Generator, n: int, k: int, shares: str, least: int) -> np.ndarray:
    rank = np.arange(1, k + 1)
    weight = {
        "balanced": np.ones(k),
        "1/rank": 1 / rank,
        "1/rank²": 1 / rank**2,
        "one dominates": np.where(rank == 1, draw.choice([9.0, 99.0, 999.0]) * k, 1.0),
        "1:1000": 1000.0 ** (-(rank - 1) / max(k - 1, 1)),
    }[shares]
    sure = np.repeat(np.arange(k), least)[: max(n, least * k)]
    others = draw.choice(k, size=max(n - len(sure), 0), p=weight / weight.sum())
    return np.concatenate([sure, others])[:n].astype(np.int64)


def _changed(draw: np.random.Generator, X: np.ndarray, columns: str) -> np.ndarray:
    d = X.shape[1]
    one, other = int(draw.integers(d)), int(draw.integers(d))
    if columns == "constant":
        X[:, one] = float(draw.choice([0.0, 1.0, -300.0]))
    elif columns == "repeated":
        X = np.concatenate([X, X[:, : max(1, d // 2)]], 1)
    elif columns == "collinear":
        X = np.concatenate([X, X[:, [other]] + 1e-4 * draw.standard_normal((len(X), 1))], 1)
    elif columns == "scaled":
        X = X * 10 ** draw.uniform(-6, 6, X.shape[1])
    elif columns == "one large":
        X[:, one] *= float(draw.choice([1e3, 1e4, 1e5]))
    elif columns == "shifted":
        X = X + float(draw.choice([3.0, 30.0, 300.0]))
    return X


def _folds(y: Tensor) -> Tensor:
    """Number the samples of each class 0, 1, 2, 0, …."""
    rank = torch.zeros_like(y)
    for label in y.unique():
        mine = (y == label).nonzero().squeeze(1)
        rank[mine] = torch.arange(len(mine))
    return rank % 3


# ---- the judge


class Judge:
    """J(W, b) and its gradient in numpy, with columns scaled so that scipy can lower it."""

    def __init__(self, X: Tensor, y: Tensor, k: int, l2: float) -> None:
        self.X, self.y, self.k, self.l2 = X.double().numpy(), y.numpy(), k, l2
        spread = self.X.std(0)
        self.scale = np.where(spread > 0, spread, 1.0)
        self.A = (self.X - self.X.mean(0)) / self.scale
        self.Y = np.eye(k)[self.y]

    def cost(self, W: np.ndarray, b: np.ndarray) -> float:
        """Compute J of W (k, d) and b (k,) with the features as given."""
        Z = self.X @ W.T + b
        top = Z.max(1)
        loss = top + np.log(np.exp(Z - top[:, None]).sum(1)) - Z[np.arange(len(Z)), self.y]
        return float(loss.mean() + self.l2 * (W**2).sum())

    def scaled(self, θ: np.ndarray) -> tuple[float, np.ndarray]:
        """Compute J and its gradient where features have mean 0 and deviation 1."""
        θ = θ.reshape(self.k, -1)
        W, b = θ[:, :-1], θ[:, -1]
        Z = self.A @ W.T + b
        top = Z.max(1, keepdims=True)
        E = np.exp(Z - top)
        total = E.sum(1, keepdims=True)
        loss = (top + np.log(total))[:, 0] - Z[np.arange(len(Z)), self.y]
        G = (E / total - self.Y) / len(Z)
        given = W / self.scale
        dW = G.T @ self.A + 2 * self.l2 * given / self.scale
        J = loss.mean() + self.l2 * (given**2).sum()
        return float(J), np.concatenate([dW, G.sum(0)[:, None]], 1).ravel()

    def least(self, W: np.ndarray, b: np.ndarray, steps: int) -> float:
        """Lower J by scipy from here and from zeros, and return the lowest found."""
        here = np.concatenate([W * self.scale, (b + W @ self.X.mean(0))[:, None]], 1).ravel()
        found = []
        for start in (here, np.zeros_like(here)):
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                result = minimize(
                    self.scaled, start, jac=True, method="L-BFGS-B",
                    options={"maxiter": steps, "maxfun": 2 * steps, "gtol": 1e-12, "ftol": 1e-16},
                )  # fmt: skip
            if np.isfinite(result.fun):
                found.append(float(result.fun))
        return min(found)


def judge(problem: Problem, gap: float = GAP, steps: int = 300) -> Verdict:
    """Solve a problem and compare each network with what numpy and scipy find."""
    verdict, start = Verdict(problem), time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            path = solve(
                problem.X, problem.y, problem.l2, gap, folds=problem.folds, start=problem.start
            )
    except Exception as error:  # a benchmark that counts failures
        verdict.faults.append(f"{type(error).__name__}: {str(error)[:90]}")
        return verdict
    verdict.seconds = time.perf_counter() - start
    verdict.iterations, verdict.gap = int(path.iterations.max()), float(path.gap.max())
    for member in range(len(path.l2)):
        verdict.faults += _faults(problem, path, member, gap, steps)
    return verdict


def _faults(problem: Problem, path: Optima, member: int, gap: float, steps: int) -> Iterator[str]:
    X, y = problem.X, problem.y
    if problem.folds is not None:
        kept = problem.folds != path.fold[member]
        X, y = X[kept], y[kept]
    l2, found, bound = (float(T[member]) for T in (path.l2, path.cost, path.gap))
    who = f"λ = {l2:.1e}"
    if not np.isfinite([found, bound]).all():
        yield f"{who}: cost {found}, gap {bound}"
        return
    W, b = path.W[member].numpy(), path.b[member].numpy()
    other = Judge(X, y, int(problem.y.max()) + 1, l2)
    J = other.cost(W, b)
    rounding = 1e-11 * max(1.0, J)
    if not abs(J - found) <= rounding:
        yield f"{who}: cost {found!r}, but numpy's is {J!r}"
    least = other.least(W, b, steps)
    if not J - least <= bound + rounding:
        yield f"{who}: gap {bound:.2e} is below the true difference {J - least:.2e}"
    if not bound <= gap:
        yield f"{who}: gap {bound:.2e} is above {gap:g}"
    if not int(path.iterations[member]) <= LIMIT:
        yield f"{who}: {int(path.iterations[member])} iterations"


def main() -> int:
    """Judge many problems; print each that fails, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=600, help="problems")
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--seed", type=int, default=0, help="seed of all problems")
    parser.add_argument("--steps", type=int, default=300, help="iterations of scipy")
    args = parser.parse_args()
    verdicts = []
    for number in range(args.first, args.first + args.number):
        verdict = judge(problem(number, args.seed), steps=args.steps)
        verdicts.append(verdict)
        if verdict.faults:
            print(f"{number}: {verdict.problem.words}; {verdict.seconds:.1f} s", flush=True)
            for fault in verdict.faults:
                print(f"    {fault}", flush=True)
    faulty = sum(bool(v.faults) for v in verdicts)
    iterations = np.array([v.iterations for v in verdicts])
    seconds = np.array([v.seconds for v in verdicts])
    middle, high = np.percentile(iterations, [50, 99])
    print(
        f"{len(verdicts)} problems, {faulty} with a fault; iterations: median {middle:.0f}, "
        f"99 % {high:.0f}, most {iterations.max()}; "
        f"seconds: median {np.median(seconds):.3f}, most {seconds.max():.1f}"
    )
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main())

"""The linear layer's optimum, contenders side by side: ``python -m benchmarks.optimum``.

Everybody gets the same features and labels, in one process, in turn: ``onelayer.solve`` all λ at
once; the others one λ after the other, each until it stops or its seconds are over. What they have
found by then, and on the way, is judged off the clock in float64: its own certificate, J - D, and
"above", J less the best D known, onelayer's: what a cost is above the optimum at most, which does
not blame a contender for a poor certificate.
Writes a CSV (a row for each contender and λ), one of all points, a picture, and prints a table.
Cyanure takes part where it is installed. The peak memory is that of a process of its own, which
has the features and solves. Seconds are those of a clock; where a machine is shared, the CPU's
seconds, of all threads, tell more.
"""

from __future__ import annotations

import argparse
import csv
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from onelayer._compat import share_cores

share_cores()  # as the command line does

import onelayer.training  # noqa: F401 - it makes lightning importable

# isort: split
import torch
from torch import Tensor

from onelayer.core.optimum.certificate import certify
from onelayer.core.optimum.data import Samples
from onelayer.core.optimum.solve import solve
from onelayer.data.features import measure, standardise
from onelayer.data.read import batches as cifar10

GAP = 1e-6
ENOUGH = 1e-4
"""The gap that the others must reach."""
POINTS = 6
"""Of a contender's way to an optimum that are judged."""


class Problem(NamedTuple):
    X: Tensor
    y: Tensor
    k: int


def pixels() -> Problem:
    """CIFAR-10, 45,000 images, standardised."""
    whole = cifar10.CIFAR10Files(cifar10.root_folder()).read("train", [range(45000)])
    return Problem(standardise(whole.x, measure(whole.x)), torch.from_numpy(whole.labels), 10)


def made_up(n: int, d: int, k: int) -> Problem:
    """Features as a deep network leaves them: classes overlap, variances fall like 1/j."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % k
    scale = torch.arange(1, d + 1).pow(-0.5)
    centres = torch.randn(k, d, generator=g) * scale
    X = torch.randn(n, d, generator=g).mul_(scale).add_(centres[y], alpha=0.7)
    return Problem(X.sub_(X.mean(0)).div_(X.std()), y, k)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "cifar10": pixels,
    "d768k20": lambda: made_up(50000, 768, 20),
    "d1024k1000": lambda: made_up(50000, 1024, 1000),
}


@dataclass
class Run:
    """What a contender had found after how many seconds, until it stopped or was stopped."""

    seconds: list[float] = field(default_factory=list)
    found: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # W (k, d), b (k,)
    stopped: str = "itself"
    cpu: float = 0.0  # seconds of all threads, until the last
    before: float = field(default_factory=time.process_time)

    def add(self, start: float, W: Tensor, b: Tensor) -> None:
        self.cpu = time.process_time() - self.before
        self.seconds.append(time.perf_counter() - start)
        self.found.append((W.clone(), b.clone()))


class TimeIsUpError(Exception):
    pass


# ---- the contenders


def ours(problem: Problem, l2s: list[float]) -> tuple[list[Run], list[float]]:
    """All λ at once; the last point of each is when all are certified. And D of each λ."""
    runs, start, spent = [Run() for _ in l2s], time.perf_counter(), 0.0

    def watch(now) -> None:
        nonlocal spent
        here = time.perf_counter()
        for run, W, b in zip(runs, now.W, now.b, strict=True):
            run.seconds.append(here - start - spent)
            run.found.append((W.float(), b.clone()))
        spent += time.perf_counter() - here

    path = solve(problem.X, problem.y, l2s, GAP, report=watch if problem.k <= 20 else None)
    for run, W, b in zip(runs, path.W, path.b, strict=True):
        run.add(start + spent, W, b)
    return runs, (path.cost - path.gap).tolist()


def torch_lbfgs(problem: Problem, l2: float, limit: float) -> Run:
    """torch.optim.LBFGS with its strong Wolfe line search, float32."""
    X, y, k = problem
    W, b = (torch.zeros(*shape, requires_grad=True) for shape in ((k, X.shape[1]), (k,)))
    optimizer = torch.optim.LBFGS(
        [W, b], max_iter=20, history_size=15, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        J = torch.nn.functional.cross_entropy(X @ W.T + b, y) + l2 * W.square().sum()
        J.backward()
        return J

    run, start = Run(stopped="time"), time.perf_counter()
    while time.perf_counter() - start < limit:
        optimizer.step(closure)
        run.add(start, W.detach(), b.detach())
    return run


@contextmanager
def watched(run: Run, k: int, limit: float) -> Iterator[None]:
    """Keep what scikit-learn's lbfgs and newton-cg ask the cost of, and end them in time."""
    from sklearn.linear_model import _logistic as home

    start = time.perf_counter()

    def counted(function):
        def call(w, *args, **kwargs):
            if time.perf_counter() - start > limit:
                raise TimeIsUpError
            result = function(w, *args, **kwargs)
            W = torch.from_numpy(w.reshape(k, -1, order="F")).double()
            run.add(start, W[:, :-1], W[:, -1])
            return result

        return call

    minimize, newton = home.optimize.minimize, home._newton_cg

    def watched_minimize(function, *args, **kwargs):
        return minimize(counted(function), *args, **kwargs)

    def watched_newton(*, grad_hess, **kwargs):
        return newton(grad_hess=counted(grad_hess), **kwargs)

    home.optimize.minimize, home._newton_cg = watched_minimize, watched_newton
    try:
        yield
    except TimeIsUpError:
        run.stopped = "time"
    finally:
        home.optimize.minimize, home._newton_cg = minimize, newton


def sklearn_with(solver: str) -> Callable[[Problem, float, float], Run]:
    def contender(problem: Problem, l2: float, limit: float) -> Run:
        from sklearn.linear_model import LogisticRegression

        X, y, k = problem
        most = {"lbfgs": 1000, "newton-cg": 100}[solver]
        model = LogisticRegression(C=1 / (2 * l2 * len(X)), solver=solver, tol=1e-8, max_iter=most)
        run = Run()
        with watched(run, k, limit):
            model.fit(X.numpy(), y.numpy())
        return run

    return contender


def sklearn_saga(problem: Problem, l2: float, limit: float) -> Run:
    """As many epochs as fit the time: it tells nothing on the way."""
    from sklearn.linear_model import LogisticRegression

    X, y, _ = problem
    run, epochs = Run(stopped="time"), 1
    while True:
        start = time.perf_counter()
        model = LogisticRegression(
            C=1 / (2 * l2 * len(X)), solver="saga", tol=0, max_iter=epochs, random_state=0
        ).fit(X.numpy(), y.numpy())
        run.add(start, torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_))
        each = run.seconds[-1] / epochs
        if epochs > 1 or limit < 2 * each:
            return run
        epochs = int(limit / each)


def cyanure(problem: Problem, l2: float, limit: float) -> Run:
    """Its own choice of solver; it cannot be stopped, but by its tolerance."""
    from cyanure.estimators import Classifier

    X, y, k = problem
    model = Classifier(
        loss="multiclass-logistic", penalty="l2", lambda_1=2 * l2, fit_intercept=True, tol=ENOUGH,
        verbose=False, max_iter=500,
    )  # fmt: skip
    run, start = Run(), time.perf_counter()
    model.fit(X.numpy().copy(), y.numpy())
    W = torch.as_tensor(model.coef_)
    run.add(start, W if len(W) == k else W.T, torch.as_tensor(model.intercept_).reshape(-1))
    return run


OTHERS: dict[str, Callable[[Problem, float, float], Run]] = {
    "scikit-learn lbfgs": sklearn_with("lbfgs"),
    "Cyanure": cyanure,
    "scikit-learn newton-cg": sklearn_with("newton-cg"),
    "scikit-learn saga": sklearn_saga,
    "torch.optim.LBFGS": torch_lbfgs,
}


# ---- the judge


def judged(problem: Problem, l2: float, run: Run, D: float) -> list[tuple[float, float, float]]:
    """Seconds, gap by its own certificate, and J - D by the best one known, of some points."""
    last = len(run.seconds) - 1
    chosen = sorted({round(last ** (i / (POINTS - 1))) for i in range(POINTS)} & {*range(last + 1)})
    chosen = sorted({*chosen, last})
    W, b = (torch.stack([run.found[i][part].double() for i in chosen]) for part in (0, 1))
    λ = torch.full((len(chosen),), l2, dtype=torch.float64)
    cost, gap = certify(Samples(problem.X, problem.y, problem.k), W, b, λ)[:2]
    above = torch.minimum(gap, cost - D).tolist()
    return list(zip((run.seconds[i] for i in chosen), gap.tolist(), above, strict=True))


def race(name: str, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row for every point of every contender."""
    problem, l2s = PROBLEMS[name](), args.l2
    runs, D = ours(problem, l2s)
    least = dict(zip(l2s, D, strict=True))
    print(
        f"{name}: onelayer {runs[0].seconds[-1]:.1f} s ({runs[0].cpu:.1f} of CPU) for all",
        flush=True,
    )
    for l2, run in zip(l2s, runs, strict=True):
        yield from rows(name, "onelayer, all λ at once", problem, l2, run, least[l2])
    del runs
    for contender, function in OTHERS.items():
        if contender not in args.contenders:
            continue
        for l2 in args.others:
            try:
                run = function(problem, l2, args.limit)
            except ImportError:
                print(f"{contender} is not installed")
                break
            yield from rows(name, contender, problem, l2, run, least[l2])


def rows(name: str, contender: str, problem: Problem, l2: float, run: Run, D: float):
    points = judged(problem, l2, run, D)
    seconds, gap, above = points[-1]
    print(
        f"{name}: {contender}, λ = {l2:.1e}: {seconds:.1f} s, gap {gap:.1e}, {above:.1e} above",
        flush=True,
    )
    for place, (seconds, gap, above) in enumerate(points):
        yield {
            "problem": name, "contender": contender, "l2": l2, "seconds": round(seconds, 2),
            "gap": gap, "above": above, "cpu": round(run.cpu, 2), "last": place == len(points) - 1,
            "stopped": run.stopped,
        }  # fmt: skip


def peak_memory(name: str, l2s: list[float]) -> float:
    """Peak memory over the float32 features, of a process that has them and solves."""
    words = [sys.executable, "-m", "benchmarks.optimum", "--memory", name, "--l2", *map(str, l2s)]
    return float(
        subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def print_memory(name: str, l2s: list[float]) -> None:
    problem = PROBLEMS[name]()
    with Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")  # the peak counts from here: making the features does not
    before = _resident("VmRSS")
    solve(problem.X, problem.y, l2s, GAP)
    features = problem.X.nbytes
    print((_resident("VmHWM") - before + features) / features)


def _resident(kind: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def draw(points: list[dict[str, object]], output: Path, l2: float) -> None:
    """Gap against seconds at one λ, a panel for each problem."""
    from onelayer.study.figures import new_figure, save

    names = list(dict.fromkeys(row["problem"] for row in points))
    figure, axes = new_figure(1, len(names), (5.5 * len(names), 4.5))
    for name, axis in zip(names, axes[0], strict=True):
        mine = [row for row in points if row["problem"] == name]
        near = min({float(row["l2"]) for row in mine}, key=lambda value: abs(value / l2 - 1))
        for contender in dict.fromkeys(row["contender"] for row in mine):
            line = [r for r in mine if r["contender"] == contender and r["l2"] == near]
            if line:
                axis.plot(
                    [r["seconds"] for r in line], [r["above"] for r in line], ".-", label=contender
                )
        axis.axhline(GAP, color="black", lw=1, ls=":")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("seconds (onelayer's: for all λ)")
        axis.set_ylabel("cost above the optimum, at most")
        axis.set_title(f"{name}, λ = {near:.0e}")
        axis.legend(fontsize=8)
    save(figure, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    default = [10 ** (-4 + i / 3) for i in range(10)]
    default[3], default[6] = 1e-3, 1e-2  # by the names that --others has
    parser.add_argument("--l2", nargs="+", type=float, default=default)
    parser.add_argument("--others", nargs="+", type=float, default=[1e-4, 1e-3, 1e-2])
    parser.add_argument("--contenders", nargs="+", default=list(OTHERS))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of each run")
    parser.add_argument("--csv", default="docs/benchmarks/optimum.csv")
    parser.add_argument("--png", default="docs/benchmarks/optimum.png")
    parser.add_argument("--memory", choices=list(PROBLEMS))
    args = parser.parse_args()
    if args.memory:
        print_memory(args.memory, args.l2)
        return
    points: list[dict[str, object]] = []
    for name in args.problems:
        for row in race(name, args):
            points.append({**row, "machine": platform.machine(), "torch": torch.__version__})
            with Path(args.csv).open("w", newline="") as file:
                writer = csv.DictWriter(file, list(points[0]))
                writer.writeheader()
                writer.writerows(points)
        print(f"{name}: peak memory {peak_memory(name, args.l2):.2f} of the features", flush=True)
    draw(points, Path(args.png), 1e-3)


if __name__ == "__main__":
    main()

"""How cost grows with images, updates and members: ``python -m benchmarks.growth``.

Times a measurement of a split against its images, a training against its updates, and an update
against the members of the population; writes one figure, each panel with the exponent of the best
power law through its points (1 is linear growth).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from onelayer._compat import share_cores

share_cores()  # as the command line does

import onelayer.training  # noqa: F401 - it makes lightning importable

# isort: split
import numpy as np
import torch

from benchmarks import contenders as c
from onelayer.study.figures import new_figure
from onelayer.training.module import OneLayer

IMAGES = (6250, 12500, 25000, 50000)
UPDATES = (500, 1000, 2000, 4000)
MEMBERS = (1, 2, 4, 8, 16, 32, 64)


def median_of(rounds: int, function: Callable[[], float]) -> float:
    """The median of what a function measures, after one call that does not count."""
    function()
    return statistics.median(function() for _ in range(rounds))


def measurement(X: torch.Tensor, y: torch.Tensor, hidden: int, images: int) -> float:
    """Seconds to measure so many images."""
    model = OneLayer(hidden).to(X.device)
    start = time.perf_counter()
    model.evaluate(X[:images], y[:images])["loss"].tolist()  # a GPU's clock stops when it is read
    return time.perf_counter() - start


def panels(hidden: int, rounds: int) -> list[tuple[str, Sequence[int], list[float]]]:
    """Name, sizes and seconds of each panel, of one kind of network."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(max(IMAGES), 3072, generator=generator).to(c.DEVICE)
    y = torch.randint(10, (len(X),), generator=generator).to(c.DEVICE)

    def training(updates: int, members: int = 1) -> float:
        return c.without_curves(c.Task(X, y, X, hidden, members=members), updates)

    return [
        ("images measured", IMAGES,
         [median_of(rounds, lambda n=n: measurement(X, y, hidden, n)) for n in IMAGES]),
        ("updates", UPDATES, [median_of(rounds, lambda n=n: training(n)) for n in UPDATES]),
        ("members (100 updates)", MEMBERS,
         [median_of(rounds, lambda m=m: training(100, m)) for m in MEMBERS]),
    ]  # fmt: skip


def main() -> None:
    """Time, draw, and print the exponents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/growth.png"))
    args = parser.parse_args()
    figure, axes = new_figure(1, 3, (13, 4.2))
    for hidden, label, colour in ((0, "linear", "#1f6fb4"), (50, "hidden 50", "#d9622b")):
        for axis, (name, sizes, seconds) in zip(
            axes.flat, panels(hidden, args.rounds), strict=True
        ):
            exponent = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
            print(f"{label}, {name}: {', '.join(f'{s:.3f}' for s in seconds)} s; "
                  f"exponent {exponent:.2f}")  # fmt: skip
            text = f"{label}, exponent {exponent:.2f}"
            axis.plot(sizes, seconds, marker="o", color=colour, label=text)
            linear = [seconds[-1] * size / sizes[-1] for size in sizes]
            axis.plot(sizes, linear, color=colour, lw=1, ls=":")
            axis.set(xscale="log", yscale="log", xlabel=name, ylabel="seconds")
            axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend()
    figure.suptitle(f"growth of cost, {torch.get_num_threads()} threads (dotted: exponent 1)")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()

"""Speed side by side: ``python -m benchmarks.run``, or ``make bench``.

All contenders run in turn, several rounds, in one process; a row of the CSV is one contender's
median over the rounds, with the hardware and versions. A ratio is that of two contenders in the
same round, and its median over the rounds: "of b" to the bare autograd loop, "of one" to the same
contender with one network. On a machine with a GPU all but scikit-learn train there, unless
CUDA_VISIBLE_DEVICES is empty. Nothing here is asserted: machines are shared, and a ratio is worth
more than a time.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import platform
import statistics
import sys
from pathlib import Path

from onelayer._compat import share_cores

share_cores()  # as the command line does

import onelayer.training  # noqa: F401 - it makes lightning importable

# isort: split
import lightning
import torch

from benchmarks import contenders as c
from onelayer.data.features import measure, standardise
from onelayer.data.read import batches as cifar10
from onelayer.data.read import shapes


def load(images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
    """Standardised X, y, the bytes, and the data set: CIFAR-10 where it is there."""
    root = cifar10.root_folder()
    real = cifar10.CIFAR10.find(root) is not None
    source = cifar10.CIFAR10Files(root) if real else shapes.Shapes()
    whole = source.read("train", [range(images)])
    X = standardise(whole.x, measure(whole.x))
    return (
        X.to(c.DEVICE),
        torch.from_numpy(whole.labels).to(c.DEVICE),
        whole.x,
        "cifar10" if real else "synthetic",
    )


def jobs(args: argparse.Namespace):
    """Contender, hidden units, members and updates of every row."""
    for hidden in (0, 50):
        yield "a bare, analytic", c.bare_analytic, hidden, 1, args.updates
        yield "b bare, autograd", c.bare_autograd, hidden, 1, args.updates
        yield "d onelayer", c.onelayer, hidden, 1, args.updates
        yield "d less curves", c.without_curves, hidden, 1, args.updates
        yield "d flips and shifts", c.flipped_and_shifted, hidden, 1, args.updates
        yield "d one update at a time", c.one_at_a_time, hidden, 1, args.updates
        yield "c Lightning, customary", c.customary_lightning, hidden, 1, args.updates // 20
        yield "e scikit-learn", c.sklearn, hidden, 1, args.updates // 20
        on_gpu = c.DEVICE.type == "cuda"
        if on_gpu:
            yield "d less curves and graphs", c.without_graphs, hidden, 1, args.updates
        for members in (20, 64, 256) if on_gpu else (20, 64):
            # Linear: as many as of one network, so that a run's start and end count alike.
            updates = args.updates // (4 if hidden and not on_gpu else 1)
            yield "d less curves", c.without_curves, hidden, members, updates
            yield "f ModuleDict of heads", c.heads, hidden, members, args.updates // 20


def hardware() -> dict[str, str]:
    """What the figures depend on."""
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line),
        platform.processor(),
    )
    return {
        "device": torch.cuda.get_device_name() if c.DEVICE.type == "cuda" else "cpu",
        "cpu": model,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def ratio(values: list[float], others: list[float] | None) -> str:
    """Median over the rounds of one contender's time by another's."""
    if others is None:
        return ""
    return f"{statistics.median(v / o for v, o in zip(values, others, strict=True)):.2f}"


def main() -> None:
    """Run the rounds, print the table, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=2000, help="of the fast contenders")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--only", default="", help="contenders by letter, such as abd")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results.csv"))
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    X, y, pictures, dataset = load(args.images)
    chosen = [job for job in jobs(args) if not args.only or job[0][0] in args.only]
    times: dict[tuple[str, int, int], list[float]] = {}
    for round_ in range(args.rounds):
        for name, contender, hidden, members, updates in chosen:
            task = c.Task(X, y, pictures, hidden, members=members)
            seconds = contender(task, updates)
            times.setdefault((name, hidden, members), []).append(1e6 * seconds / updates)
            print(f"round {round_ + 1}: {name}, hidden {hidden}, members {members}: "
                  f"{1e6 * seconds / updates:.0f} µs an update", file=sys.stderr)  # fmt: skip

    rows = []
    head = ("µs/update", "of b", "of one")
    print(f"{'contender':<24} {'hidden':>6} {'members':>7} {head[0]:>10} {head[1]:>6} {head[2]:>6}")
    for (name, hidden, members), values in times.items():
        median = statistics.median(values)
        of_b = ratio(values, times.get(("b bare, autograd", hidden, 1)))
        of_one = ratio(values, times.get((name, hidden, 1))) if members > 1 else ""
        print(f"{name:<24} {hidden:>6} {members:>7} {median:>10.0f} {of_b:>6} {of_one:>6}")
        rows.append(
            {
                "contender": name,
                "hidden": hidden,
                "members": members,
                "us_per_update": round(median, 1),
                "min": round(min(values), 1),
                "max": round(max(values), 1),
                "of_b": of_b,
                "of_one": of_one,
                "rounds": args.rounds,
                "batch_size": 100,
                "images": args.images,
                "dataset": dataset,
                **hardware(),
            }
        )
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()

"""Features of one's own: ``onelayer fit`` as shipped beside bare loops on the same rows.

``python -m benchmarks.features`` prints, for d = 768 with 20 classes and for d = 1024 with 1,000,
the microseconds of an update of a bare loop (nn.Linear, cross_entropy, SGD), of ``fit`` with
curves, TensorBoard, bar and checkpoints, and of twenty λ in one pass, round after round, and the
medians of the ratios within a round. The clock of ``fit`` is that of summary.json: from the start
of the training, first measurement included, to the last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from onelayer._compat import share_cores

share_cores()  # as the command line does

import onelayer.training  # noqa: F401 - it makes lightning importable

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.contenders import L2, LR, Task, clock
from onelayer.__main__ import main as command
from onelayer.data.arrays import ArraysDataModule


@dataclass(frozen=True)
class Size:
    """Rows, features, classes, updates of one cycle, and the files that hold them."""

    n: int
    d: int
    k: int
    updates: int
    files: str
    dtype: type = np.float32


SIZES = (
    Size(20_000, 768, 20, 4000, "text.npz"),
    Size(100_000, 1024, 1000, 7200, "[X.npy,y.npy]", np.float16),  # 1 GB in float32 at most
)


def make(size: Size) -> None:
    """Write rows that tell their class nearly, as an embedding's would."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(size.n) % size.k)
    X = np.empty((size.n, size.d), dtype=size.dtype)
    centres = rng.normal(size=(size.k, size.d)).astype(np.float32)
    for start in range(0, size.n, 4096):
        own = y[start : start + 4096]
        X[start : start + 4096] = centres[own] + 3 * rng.normal(size=(len(own), size.d))
    if size.files.endswith(".npz"):
        np.savez(size.files, X=X, y=y)
    else:
        np.save("X.npy", X)
        np.save("y.npy", y)


def bare(X: torch.Tensor, y: torch.Tensor, size: Size) -> float:
    """Microseconds of an update of a bare loop, the slice of a batch included."""
    model = nn.Linear(size.d, size.k)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=2 * L2)

    def update(X: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()

    updates = size.updates // 4
    return 1e6 * clock(Task(X, y, X, 0), updates, update) / updates


def fit(size: Size, l2: str, updates: int) -> float:
    """Microseconds of an update of ``onelayer fit`` as shipped."""
    words = [
        "fit", "--data=ArraysDataModule", f"--data.train={size.files}", f"--model.l2={l2}",
        f"--schedule.step_size={updates // 2}", f"--schedule.max_lr={LR}",
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert command(words) == 0
    newest = max(Path("lightning_logs/fit").iterdir(), key=lambda p: int(p.name.split("_")[1]))
    return 1e6 * float(json.loads((newest / "summary.json").read_text())["seconds"]) / updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=int, help="0: d = 768 alone; 1: d = 1024 alone")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    twenty = str([float(l2) for l2 in np.logspace(-6, -1, 20)])
    for size in SIZES if args.only is None else SIZES[args.only :][:1]:
        here = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                one_round(size, args.rounds, twenty)
            finally:
                os.chdir(here)


def one_round(size: Size, rounds: int, twenty: str) -> None:
    make(size)
    given = size.files if size.files.endswith(".npz") else ["X.npy", "y.npy"]
    data = ArraysDataModule(given)
    data.setup("fit")
    X, y = data.tensors("train")
    times = []
    for _ in range(rounds):
        one, shipped = bare(X, y, size), fit(size, str(L2), size.updates)
        times.append((one, shipped, fit(size, twenty, size.updates // 2)))
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    print(
        f"d = {size.d}, k = {size.k}, n = {size.n:,}, µs an update: bare loop {medians[0]:.0f}, "
        f"fit {medians[1]:.0f} ({statistics.median(b / a for a, b, _ in times):.2f} of it), twenty "
        f"λ in one pass {medians[2]:.0f} "
        f"({statistics.median(c / (20 * a) for a, _, c in times):.2f} of twenty bare loops)",
        flush=True,
    )


if __name__ == "__main__":
    main()

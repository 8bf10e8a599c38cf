"""Fair probes: what ``fit`` and ``search`` reach beside ``solve`` on frozen features.

``python -m benchmarks.probe`` makes 50,000 × 768 features of 100 classes of very different sizes,
runs the three commands of docs/features.md, and prints test accuracies and seconds. ``solve`` is
the judge: it minimises the same cost, and its λ is chosen on the same validation split.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GRID = "[0.00001,0.0001,0.001,0.01]"


def make(n: int, d: int, k: int) -> None:
    """Write train.npz and test.npz: sizes of classes fall like 1/rank, and classes overlap."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, k + 1)
    scale = 1 / np.sqrt(np.arange(1, d + 1))
    centres = rng.normal(size=(k, d)) * scale
    for name, rows in (("train", n), ("test", n // 5)):
        y = np.concatenate([np.arange(k).repeat(5), rng.choice(k, rows, p=shares / shares.sum())])
        X = 0.11 * centres[y] + rng.normal(size=(len(y), d)) * scale
        np.savez(f"{name}.npz", X=X.astype(np.float32), y=y)


def run(command: str, *words: str) -> float:
    """Run a command of onelayer on the files; its seconds."""
    data = ["--data", "ArraysDataModule", "--data.train", "train.npz", "--data.test", "test.npz"]
    start = time.perf_counter()
    done = [sys.executable, "-m", "onelayer", command, *data, *words]
    subprocess.run(done, check=True, capture_output=True)
    return time.perf_counter() - start


def best_of_fit(folder: Path) -> float:
    """Return the test accuracy of the λ that is best on validation."""
    members = json.loads((folder / "summary.json").read_text())["members"]
    return float(max(members, key=lambda m: m["val"]["accuracy"])["test"]["accuracy"])


def main() -> None:
    """Print a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--k", type=int, default=100)
    args = parser.parse_args()
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            make(args.n, args.d, args.k)
            seconds = run("solve", "--output", "solved")
            solved = json.loads(Path("solved/summary.json").read_text())["final"]["test"]
            print(f"solve   {100 * solved['accuracy']:.2f} %  {seconds:.0f} s", flush=True)
            seconds = run("fit", f"--model.l2={GRID}")
            (last,) = Path("lightning_logs/fit").iterdir()
            print(f"fit     {100 * best_of_fit(last):.2f} %  {seconds:.0f} s", flush=True)
            seconds = run("search", "--model.hidden", "0", "--output", "found")
            found = json.loads(Path("found/search.json").read_text())["final"]
            tests = [m["test"]["accuracy"] for m in found["members"]]
            print(f"search  {100 * np.mean(tests):.2f} %  {seconds:.0f} s", flush=True)
        finally:
            os.chdir(here)


if __name__ == "__main__":
    main()

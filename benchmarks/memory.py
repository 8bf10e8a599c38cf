"""How much memory of its own a training on a large .npy takes: fit, test and search in children.

``python -m benchmarks.memory --gigabytes 6`` makes the file in a folder that is removed afterwards,
and prints for each command the largest RssAnon, which leaves out the pages of mapped files, its
seconds, and its updates a second. Linux alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

D, K, ROWS = 1024, 20, 4096


def write(folder: Path, gigabytes: float, seed: int = 0) -> int:
    """Write X.npy, float32 (n, 1024), whose rows tell their class nearly, and y.npy; n."""
    n = int(gigabytes * 1e9 / (4 * D))
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(K, D)).astype(np.float32)
    y = rng.integers(K, size=n)
    X = np.lib.format.open_memmap(folder / "X.npy", "w+", np.float32, (n, D))
    for start in range(0, n, ROWS):
        own = y[start : start + ROWS]
        X[start : start + ROWS] = centres[own] + 4 * rng.normal(size=(len(own), D))
    X.flush()
    np.save(folder / "y.npy", y)
    np.save(folder / "X_test.npy", X[:20_000])
    np.save(folder / "y_test.npy", y[:20_000])
    return n


def run(folder: Path, words: list[str]) -> tuple[int, float, float]:
    """Run onelayer; its exit code, its largest RssAnon in GB, its seconds."""
    start, most = time.monotonic(), 0
    with (folder / "out.txt").open("a") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "onelayer", *words], cwd=folder, stdout=out, stderr=out
        )
        while child.poll() is None:
            most = max(most, own_memory(child.pid))
            time.sleep(0.05)
    return child.returncode, most / 1e6, time.monotonic() - start


def own_memory(pid: int) -> int:
    """RssAnon of a process in kB: what is its own, without the page cache."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--folder", type=Path, help="where the file is made; a temporary one")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="onelayer-", dir=args.folder))
    try:
        n = write(folder, args.gigabytes)
        print(f"X.npy: {n:,} x {D} float32, {(folder / 'X.npy').stat().st_size / 1e9:.2f} GB")
        data = [
            "--data=ArraysDataModule", "--data.train=[X.npy,y.npy]", "--data.val_size=20000",
        ]  # fmt: skip
        quiet = "--trainer.enable_progress_bar=false"
        half = args.updates // 2
        test = "--data.test=[X_test.npy,y_test.npy]"
        for words in (
            ["fit", *data, test, f"--schedule.step_size={half}", "--model.l2=[0.0,0.001]", quiet],
            ["test", "--ckpt_path=last", "--data.test=[X.npy,y.npy]", quiet],
            [
                "search", *data, test, f"--schedule.step_size={half // 4}", "--search.stages=1",
                "--search.number=8", "--search.seeds=[0]", "--search.top=2", "--final.seeds=[0]",
                f"--final.step_size={half // 4}", "--final.cycles=1", "--model.hidden=0",
                "--output=search",
            ],
        ):  # fmt: skip
            code, gigabytes, seconds = run(folder, words)
            print(f"{words[0]:<7} exit {code}, RssAnon at most {gigabytes:.2f} GB, {seconds:.0f} s")
        print((folder / "out.txt").read_text()[-1500:])
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

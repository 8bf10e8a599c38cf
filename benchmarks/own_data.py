"""Five data sets of one's own, from a file to predictions, killed on the way.

``python -m benchmarks.own_data`` makes data shaped as FashionMNIST, as CIFAR-100, scikit-learn's
digits, text embeddings of twenty classes and features of a thousand, in a folder that is removed
afterwards. On each, a training is killed with SIGKILL as soon as it has a checkpoint, then at
random moments, and resumed until it ends, and must end with the bits of one that was not: weights,
curves.csv and figures. Then λ is searched, a population a stage, and rows are predicted. Prints a
line for each; exit code 1 if a bit differs or no kill was resumed from.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.killing import attempt, fork, load_everything

QUIET = "--trainer.enable_progress_bar=false"
FIT = ["--schedule.step_size=600", "--checkpoints.every=50", "--model.l2=[0.0,0.001]", QUIET]
RUN = Path("lightning_logs/fit/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


class Shaped:
    """A Dataset of images (c, side, side), bytes whose brightness tells the class, nearly."""

    def __init__(self, n: int, channels: int, side: int, k: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.y = rng.permutation(np.arange(n) % k)
        shape = (n, channels, side, side)
        light = np.random.default_rng(0).integers(0, 100, (k, channels, side, side))
        self.x = (rng.integers(0, 156, shape) + light[self.y]).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.x[i], int(self.y[i])


def dataset_class() -> type:
    """:class:`Shaped` as a torch Dataset, once torch may be imported."""
    from torch.utils.data import Dataset

    return type("ShapedDataset", (Shaped, Dataset), {"__module__": __name__})


def __getattr__(name: str) -> type:
    if name == "ShapedDataset":
        globals()[name] = dataset_class()
        return globals()[name]  # type: ignore[no-any-return]
    raise AttributeError(name)


def dataset(channels: int, side: int, k: int, n: int) -> Callable[[], list[str]]:
    def ready() -> list[str]:
        words = ["--data=DatasetDataModule"]
        for split, seed, count in (("train", 1, n), ("test", 2, n // 5)):
            sizes = {"n": count, "channels": channels, "side": side, "k": k, "seed": seed}
            words.append(f"--data.{split}=benchmarks.own_data.ShapedDataset")
            words += [f"--data.{split}.{name}={value}" for name, value in sizes.items()]
        rng = np.random.default_rng(3)
        np.savez("new.npz", X=rng.integers(0, 256, (50, channels * side**2), dtype=np.uint8))
        return words

    return ready


def features(n: int, d: int, k: int, dtype: type, npy: bool = False) -> Callable[[], list[str]]:
    def ready() -> list[str]:
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(k, d)).astype(np.float32)

        def rows(n: int) -> tuple[Any, Any]:
            y = rng.permutation(np.arange(n) % k)
            return (centres[y] + 2 * rng.normal(size=(n, d)).astype(np.float32)).astype(dtype), y

        for split, count in (("train", n), ("test", n // 5)):
            X, y = rows(count)
            if npy:
                np.save(f"{split}_X.npy", X)
                np.save(f"{split}_y.npy", y)
            else:
                np.savez(f"{split}.npz", X=X, y=y)
        np.savez("new.npz", X=X[:50])
        files = {s: f"[{s}_X.npy,{s}_y.npy]" if npy else f"{s}.npz" for s in ("train", "test")}
        return ["--data=ArraysDataModule", *(f"--data.{s}={f}" for s, f in files.items())]

    return ready


def digits() -> list[str]:
    from sklearn.datasets import load_digits

    found = load_digits()
    X, y = found.data.astype(np.float32), found.target
    names = np.array([f"digit {k}" for k in range(10)])
    np.savez("train.npz", X=X[:1400], y=y[:1400], classes=names)
    np.savez("test.npz", X=X[1400:], y=y[1400:], classes=names)
    np.savez("new.npz", X=X[:50])
    return ["--data=ArraysDataModule", "--data.train=train.npz", "--data.test=test.npz"]


SETS: dict[str, Callable[[], list[str]]] = {
    "FashionMNIST-shaped": dataset(1, 28, 10, 10_000),
    "CIFAR-100-shaped": dataset(3, 32, 100, 10_000),
    "digits": digits,
    "text, d = 768, k = 20": features(20_000, 768, 20, np.float32),
    "d = 1024, k = 1000, float16": features(100_000, 1024, 1000, np.float16, npy=True),
}


def run(
    folder: Path, words: list[str], seconds: float | None = None, after: Path | None = None
) -> int:
    """Run onelayer in a folder, with its output in out.txt; negative where it was killed."""
    os.chdir(folder)
    out, err = os.dup(1), os.dup(2)
    with open("out.txt", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            return attempt(words, seconds, after=after)
        finally:
            os.dup2(out, 1)
            os.dup2(err, 2)


def killed_and_resumed(
    folder: Path, fit: list[str], seconds: float, rng: random.Random
) -> tuple[int, int]:
    """Train with kills until it ends; how many hit it, and how many left a checkpoint."""
    kills, resumed, words = 0, 0, fit
    while True:
        if kills == 0:
            code = run(folder, words, 0, LAST)
        else:
            code = run(folder, words, rng.uniform(0.1, 0.6) * seconds if kills < 3 else None)
        if code == 0:
            return kills, resumed
        if code > 0:
            sys.exit((folder / "out.txt").read_text()[-2000:])
        kills += 1
        if (folder / LAST).is_file():
            words = ["fit", f"--ckpt_path={RUN}", QUIET]
            resumed += 1
        else:  # nothing to go on from
            shutil.rmtree(folder / "lightning_logs", ignore_errors=True)


def same(a: Path, b: Path) -> bool:
    """Whether two runs have ended with the same bits."""

    def compare() -> int:
        import torch

        ours, theirs = (
            torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for run in (a, b)
        )
        members = [json.loads((run / "summary.json").read_text())["members"] for run in (a, b)]
        curves = [(run / "curves.csv").read_bytes() for run in (a, b)]
        equal = all(torch.equal(ours[name], theirs[name]) for name in theirs)
        return int(not (equal and members[0] == members[1] and curves[0] == curves[1]))

    return os.waitstatus_to_exitcode(os.waitpid(fork(compare), 0)[1]) == 0


def one(name: str, folder: Path, rng: random.Random) -> bool:
    whole, killed = folder / "whole", folder / "killed"
    whole.mkdir()
    os.chdir(whole)
    words = SETS[name]()
    shutil.copytree(whole, killed)
    fit = ["fit", *words, *FIT]
    start = time.monotonic()
    code = run(whole, fit)
    seconds = time.monotonic() - start
    kills, resumed = killed_and_resumed(killed, fit, seconds, rng)
    equal = code == 0 and same(whole / RUN, killed / RUN)
    search = [
        "search", *words, "--search.stages=1", "--search.number=5", "--search.seeds=[0]",
        "--search.top=2", "--schedule.step_size=100", "--schedule.cycles=1", "--final.seeds=[0]",
        "--final.step_size=100", "--final.cycles=1", "--model.hidden=0", "--output=found",
    ]  # fmt: skip
    searched = run(killed, search) == 0
    predicted = run(killed, ["predict", "--ckpt_path=last", "--data.predict=new.npz", QUIET]) == 0
    rows = len((killed / "predictions.csv").read_text().splitlines()) - 1
    accuracy = json.loads((killed / RUN / "summary.json").read_text())["members"][0]["test"]
    print(
        f"{name:<28} {kills} kills, {resumed} resumed, "
        f"{'the same bits' if equal else 'OTHER BITS'}; search "
        f"{'done' if searched else 'FAILED'}; {rows} rows predicted; test accuracy "
        f"{100 * accuracy['accuracy']:.1f} %; {seconds:.0f} s",
        flush=True,
    )
    return equal and resumed > 0 and searched and predicted and rows == 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="the beginning of a name")
    args = parser.parse_args()
    load_everything()
    rng, good = random.Random(args.seed), True
    for name in SETS:
        if args.only is None or name.startswith(args.only):
            folder = Path(tempfile.mkdtemp(prefix="onelayer-"))
            try:
                good &= one(name, folder, rng)
            finally:
                os.chdir("/")
                shutil.rmtree(folder)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

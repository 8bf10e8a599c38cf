"""Exported networks: file sizes, times of a prediction, and the difference from predict.

``python -m benchmarks.export`` trains a linear network, one of 50 hidden units and five of these on
CIFAR-10, exports each as .onnx, .safetensors and .npz, and prints for 2,000 test images the largest
difference of a probability from predict's. Times are the shortest of repeated calls on one thread,
of raw images to probabilities: onnxruntime, NumPy as the documentation has it, and to_torch().
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onelayer._compat import share_cores

share_cores()  # as the command line does

import onelayer.training  # noqa: F401 - it makes lightning importable

# isort: split
import numpy as np
import onnxruntime
import torch

from onelayer import CIFAR10DataModule, OneLayer, train_and_test
from onelayer.deploy.export import predict_numpy
from onelayer.deploy.head import head_of

MODELS: dict[str, dict[str, Any]] = {
    "linear": {"l2": 0.01},
    "50 hidden units": {"hidden": 50, "l2": 0.01},
    "five of these": {"hidden": 50, "l2": 0.01, "seeds": [0, 1, 2, 3, 4]},
}
ROWS = (1, 1000)
TEST = 2000  # images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step_size", type=int, default=400, help="updates of half a cycle")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = CIFAR10DataModule()
    data.setup("test")
    x, _ = data.labelled("test")
    images = x[:TEST].view(-1, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        for name, model in MODELS.items():
            settings = {
                "model": model,
                "data": {"train_batches": [1], "val_batches": [2]},
                "schedule": {"step_size": args.step_size, "cycles": 1},
                "trainer": {"enable_progress_bar": False},
            }
            run = train_and_test(settings, Path(folder, name.replace(" ", "_")))
            print(f"\n{name}")
            report(run.network, images, Path(folder))


@torch.no_grad()
def report(network: OneLayer, images: torch.Tensor, folder: Path) -> None:
    """Print a line for each way to predict."""
    expected = head_of(network).predict(images).numpy()
    print(f"{'':<14}{'kB':>8}{'difference':>12}" + "".join(f"{n:>8} rows (µs)" for n in ROWS))
    for suffix in (".onnx", ".safetensors", ".npz", "to_torch()"):
        path = None if suffix == "to_torch()" else network.export(folder / f"head{suffix}")
        predict = reader(network, path)
        size = "" if path is None else f"{path.stat().st_size / 1000:.0f}"
        worst = np.abs(predict(images.numpy()) - expected).max()
        times = [clock(predict, images[:n].numpy()) for n in ROWS]
        print(f"{suffix:<14}{size:>8}{worst:>12.1e}" + "".join(f"{t:>18.1f}" for t in times))


def reader(network: OneLayer, path: Path | None) -> Callable[[Any], Any]:
    if path is None:
        module = network.to_torch()
        return lambda x: module(torch.from_numpy(x)).numpy()
    if path.suffix == ".onnx":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options)
        return lambda x: session.run(["probabilities"], {"samples": x})[0]
    if path.suffix == ".npz":
        arrays = dict(np.load(path))
    else:
        from safetensors.numpy import load_file

        arrays = load_file(path)
    return lambda x: predict_numpy(arrays, x.reshape(len(x), -1) / 255)


def clock(predict: Callable[[Any], Any], x: Any, seconds: float = 2.0) -> float:
    """Return the shortest microseconds of a call: others share the machine."""
    predict(x)
    times, end = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        predict(x)
        times.append(time.perf_counter() - start)
    return 1e6 * min(times)


if __name__ == "__main__":
    main()

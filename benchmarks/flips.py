"""Linear CIFAR-10 with mirror images: ``python -m benchmarks.flips``.

49,000 images and their mirror images learn, 1,000 choose λ, the 10,000 of the test split are
measured once, by the network of that λ. Every cost is certified.
"""

from __future__ import annotations

import argparse

from onelayer._compat import share_cores

share_cores()  # as the command line does

import onelayer.training  # noqa: F401 - it makes lightning importable

# isort: split
import torch
from torch import Tensor

from onelayer.core.formulas import measure as count
from onelayer.core.optimum import Path, solve
from onelayer.data.features import measure, standardise
from onelayer.data.sources import cifar10


def mirrored(X: Tensor) -> Tensor:
    """Images and their mirror images (2n, d)."""
    return torch.cat([X, X.view(-1, 3, 32, 32).flip(3).flatten(1)])


def accuracies(path: Path, X: Tensor, y: Tensor) -> list[float]:
    correct = count(X, y, (path.W.float(), path.b.float()))[1]
    return (100 * correct / len(y)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--l2", nargs="+", type=float, default=[0.003, 0.01, 0.03])
    parser.add_argument("--without", action="store_true", help="the images alone, for comparison")
    args = parser.parse_args()
    source = cifar10.CIFAR10Files(cifar10.root_folder())
    whole = source.read("train", range(50000))
    statistics = measure(whole.x[:49000])
    X, y = standardise(whole.x[:49000], statistics), whole.y[:49000]
    if not args.without:
        X, y = mirrored(X), torch.cat([y, y])
    path = solve(X, y, args.l2)
    val = accuracies(path, standardise(whole.x[49000:], statistics), whole.y[49000:])
    for l2, gap, accuracy in zip(args.l2, path.gap.tolist(), val, strict=True):
        print(f"λ = {l2:g}: gap {gap:.1e}, validation {accuracy:.1f} %")
    best = max(range(len(val)), key=lambda i: (val[i], args.l2[i]))
    test = source.read("test", range(10000))
    found = accuracies(path, standardise(test.x, statistics), test.y)[best]
    print(f"test {found:.2f} % at λ = {args.l2[best]:g}, the best on validation")


if __name__ == "__main__":
    main()

"""``onelayer gradcheck``: the gradients of both networks on real or built-in images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from onelayer.core.checks import LARGEST_SEED, check_whole
from onelayer.core.gradcheck import (
    L2,
    STEP,
    check_gradients,
    format_pairs,
    format_table,
    show_pairs,
)
from onelayer.data.features import measure, standardise
from onelayer.data.read import batches, shapes
from onelayer.study.plain_parser import PlainParser
from onelayer.training.summary import network_name

IMAGES, INPUTS = 20, 50
"""Size of the check, as in the report."""


def main(argv: Sequence[str]) -> int:
    """Print the table of checks; 0 if every figure is within its bound, else 1."""
    parser = PlainParser(
        "gradcheck",
        "Compare every analytic gradient with autograd and with difference quotients.",
    )
    parser.add_argument("--hidden", type=int, default=50, help="hidden units (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    parser.add_argument(
        "--show",
        action="store_true",
        help="print ten entries of each network's gradient, by the formula and numerically",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--data.root", dest="root", help="folder of CIFAR-10 (default: $ONELAYER_DATA or data/)"
    )
    args = parser.parse_args(argv)
    check_whole("--hidden", args.hidden, 1, 10_000)  # every weight is moved to and fro
    check_whole("--seed", args.seed, 0, LARGEST_SEED)

    X, y, dataset = batch(batches.root_folder(args.root))
    if args.show and not args.json:
        print(f"{IMAGES} {dataset} images, {INPUTS} inputs, float64, l2 = {L2[0]}")
        for hidden in (0, args.hidden):
            pairs = show_pairs(X, y, hidden, args.seed)
            print(f"\n{network_name(hidden)}: (J(θ + h) - J(θ - h)) / 2h with h = {STEP:g}")
            print(format_pairs(pairs))
        print()
    checks = check_gradients(X, y, hidden=args.hidden, seed=args.seed)
    passed = all(check.passed for check in checks)
    if args.json:
        rows = [{**asdict(check), "passed": check.passed} for check in checks]
        print(json.dumps({"dataset": dataset, "passed": passed, "checks": rows}, indent=2))
    else:
        print(f"{IMAGES} {dataset} images, {INPUTS} inputs, float64\n{format_table(checks)}")
        print("every gradient is within its bound." if passed else "a bound was MISSED.")
    return 0 if passed else 1


def batch(root: Path) -> tuple[Tensor, Tensor, str]:
    """X (20, 50) float64, y (20,) and the data set: CIFAR-10 under ``root``, or the built-in one.

    The inputs are pixels spread over the whole image: neighbours are all but equal, and add little.
    """
    real = batches.CIFAR10.find(root) is not None
    images = batches.load(root, batches.train_batch(1)) if real else shapes.make(2000, seed=0)
    X = standardise(images.x[:IMAGES], measure(images.x), torch.float64)
    pixels = torch.linspace(0, X.shape[1] - 1, INPUTS).long()
    y = torch.from_numpy(images.labels[:IMAGES])
    return X[:, pixels], y, "cifar10" if real else "synthetic"

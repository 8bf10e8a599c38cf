"""``onelayer features``: the features of a folder of images, by a frozen backbone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from onelayer.core.checks import at_home
from onelayer.data.backbone import BATCH, Backbone
from onelayer.deploy.extract import DTYPES, PARTS, SHARD, Extraction
from onelayer.study.plain_parser import PlainParser


def main(argv: Sequence[str]) -> int:
    """Write the file and say what is in it; 1 if some images could not be read, else 0."""
    parser = PlainParser(
        "features",
        "Turn a folder of images into features with a frozen backbone. Subfolders are the classes. "
        f"A stopped command goes on from OUTPUT{PARTS} when it is given again.",
    )
    parser.add_argument(
        "--backbone",
        required=True,
        help="torchvision/MODEL, timm/MODEL, or package.module.Class of an nn.Module",
    )
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--output", required=True, help=".npz file to write")
    parser.add_argument(
        "--weights",
        default="default",
        help="name of the weights, a file of them, random, or default for those that the library "
        "downloads",
    )
    parser.add_argument(
        "--size", type=int, help="pixels of a side of the images (default: the weights' own)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=BATCH, help=f"images at once (default: {BATCH})"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu or cuda (default: auto, a GPU if there is one)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="type of the features (default: float32)"
    )
    parser.add_argument(
        "--shard", type=int, default=SHARD, help=f"images between two savings (default: {SHARD})"
    )
    args = parser.parse_args(argv)
    faults = Extraction(
        Backbone(args.backbone, args.weights, args.size),
        at_home(args.images),
        at_home(args.output),
        args.dtype,
        args.batch_size,
        args.device,
        args.shard,
    ).run()
    _tell(at_home(args.output), faults)
    return int(bool(faults))


def _tell(path: Path, faults: Sequence[str], most: int = 5) -> None:
    import numpy as np

    with np.load(path, allow_pickle=False) as content:
        n, d = content["X"].shape
        classes = f", {len(content['classes'])} classes" if "classes" in content.files else ""
    print(f"{n} images, {d} features{classes}: {path}")
    if faults:
        more = [f"and {len(faults) - most} more"] if len(faults) > most else []
        print("onelayer: warning: left out:", *faults[:most], *more, sep="\n", file=sys.stderr)

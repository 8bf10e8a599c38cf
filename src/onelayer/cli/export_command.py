"""``onelayer export``: a run's networks as an ONNX, safetensors or npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onelayer.cli.parser import RUNS
from onelayer.cli.resuming import find_checkpoints
from onelayer.deploy.export import check_output, export
from onelayer.deploy.head import TYPES
from onelayer.study.plain_parser import PlainParser
from onelayer.training.checkpoint import load_network


def main(argv: Sequence[str]) -> int:
    """Write the file and print what is in it; return 0."""
    parser = PlainParser(
        "export",
        "Write a run's networks to a file that needs neither onelayer nor Lightning. It takes raw "
        "samples and is compared with predict before it gets its name.",
    )
    parser.add_argument(
        "--ckpt_path",
        required=True,
        help="run folder, checkpoint file, a list of them, or last for the newest run",
    )
    parser.add_argument(
        "--output", required=True, help="file to write, ending in .onnx, .safetensors or .npz"
    )
    parser.add_argument(
        "--member",
        type=_member,
        default="best",
        help="networks whose probabilities are averaged: best on validation, all, or one by its "
        "number (default: best)",
    )
    parser.add_argument(
        "--dtype",
        choices=list(TYPES),
        help="type of raw samples; uint8 for pixels from 0 to 255 (default: the training data's)",
    )
    args = parser.parse_args(argv)
    output = check_output(args.output)
    paths = find_checkpoints(args.ckpt_path, Path(RUNS), any_config=True)
    network = load_network(paths[0] if len(paths) == 1 else paths)
    path, words, difference = export(network, output, args.member, args.dtype)
    print(f"{words}: {path} ({path.stat().st_size:,} bytes)")
    if difference is None:
        print('not compared with predict: pip install "onelayer[onnx]" installs onnxruntime.')
    else:
        print(f"largest difference from predict's probabilities: {difference:.1e}")
    return 0


def _member(text: str) -> int | str:
    return int(text) if text.isdecimal() else text

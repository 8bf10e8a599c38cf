"""Results that commands print when they end."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

from onelayer.data.adapter import name_of
from onelayer.training.folder import last_of
from onelayer.training.metrics import ensembles_of
from onelayer.training.module import OneLayer
from onelayer.training.optimality import format_gaps
from onelayer.training.results import members_with
from onelayer.training.summary import format_split, format_summary, network_name

WORDS = {"val": "validation", "test": "test"}
SYNTHETIC = "these results are of the built-in synthetic images, not of CIFAR-10."


def print_run(summary: dict[str, Any], folder: Path | None) -> None:
    """Print the results of a fit, its folder, and the command that exports its networks."""
    print(f"\n{format_summary(summary)}")
    if folder is not None:
        print(f"run: {folder} (curves.png, checkpoints/, …)")
        if last_of(folder).is_file():
            run = shlex.quote(str(folder))
            print(f"export: onelayer export --ckpt_path {run} --output head.onnx")
    if summary["dataset"] == "synthetic":
        print(SYNTHETIC)


def print_split(
    module: OneLayer, data: Any, split: Literal["val", "test"], first: bool
) -> dict[str, Any] | None:
    """Print the results of a split, and return them as in summary.json.

    Args:
        module: the networks, evaluated.
        data: the data module.
        split: the split.
        first: whether this is the first of several processes; the others return None.
    """
    figures, ensembles = module.figures(module.measured), ensembles_of(module, split)  # of all
    if not first:
        return None
    members, dataset = members_with(module, split, figures), name_of(data)
    print(f"{network_name(module.hidden)}, {dataset}, {WORDS[split]} split")
    print(format_split(members, split, ensembles))
    if split == "test" and not module.hidden:
        print(format_gaps(module, data))
    if dataset == "synthetic":
        print(SYNTHETIC)
    summary = {"dataset": dataset, "hidden": module.hidden, "members": members}
    return summary | ({"ensembles": ensembles} if ensembles else {})

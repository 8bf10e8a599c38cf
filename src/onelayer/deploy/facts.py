"""Facts about an exported network, as JSON: names, hyperparameters, metrics, certificate, data."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onelayer.data.read.batches import CIFAR10
from onelayer.deploy.head import Head
from onelayer.training.folder import LAST, run_folder

if TYPE_CHECKING:
    from onelayer.training.module import OneLayer


def facts_of(head: Head) -> dict[str, Any]:
    """Return what a stranger needs to know about exported networks, in plain values.

    Metrics are those of the same update as the weights; without them a value is missing.
    """
    network, samples = head.network, head.network.samples
    of_cifar10 = samples.get("dataset") == "cifar10" and not samples.get("digest")
    members = [member.named() for member in head.members]
    for at, known in zip(head.choice.members, members, strict=True):
        known.update(_metrics_of(network, at))
    facts = {
        "onelayer": version("onelayer"),
        "classes": list(network.classes),
        "features": network.columns,
        "hidden": network.hidden,
        "networks": head.choice.words,
        "members": members,
        "dataset": samples.get("dataset"),
        "data_digest": CIFAR10.md5 if of_cifar10 else samples.get("digest"),
        "backbone": json.loads(samples["backbone"]) if "backbone" in samples else None,
        "input": {
            "shape": list(head.shape),
            "dtype": str(head.dtype).removeprefix("torch."),
            "standardise": samples.get("standardise", "none"),
        },
        **_averages(members),
    }
    return {name: value for name, value in facts.items() if value is not None}


def as_strings(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return facts as JSON strings, for headers that hold strings only."""
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


def summary_of(network: OneLayer) -> tuple[Path | None, dict[str, Any]]:
    """Return the run's folder and its summary.json, if they are of the same update."""
    folder, step = None, None
    if network.origin is not None:
        path, step = network.origin
        folder = path.parent.parent
    elif network._trainer is not None:
        folder, step = run_folder(network.trainer), network.trainer.global_step
    if folder is None:
        return None, {}
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if "final" in summary:  # of onelayer solve
            return folder, summary
        return (folder, summary) if summary["steps"] == step else (None, {})
    except (OSError, ValueError, KeyError, TypeError):
        return None, {}


def _metrics_of(network: OneLayer, at: int) -> dict[str, Any]:
    """Return accuracies and gap of a member."""
    found = dict[str, Any]()
    if network.validation is not None:
        found["val_accuracy"] = network.validation["accuracy"][at]
    _, summary = summary_of(network)
    if "final" in summary:
        return {**found, **_of_solve(network, summary, at)}
    kept = summary.get("members") or []
    if len(kept) == len(network.members):
        found |= {
            f"{split}_accuracy": kept[at][split]["accuracy"]
            for split in ("val", "test")
            if split in kept[at]
        }
    return found


def _of_solve(network: OneLayer, summary: Mapping[str, Any], at: int) -> dict[str, Any]:
    path = network.origin[0] if network.origin else Path(LAST)
    if path.name == LAST:
        final = summary["final"]
        test = {"test_accuracy": final["test"]["accuracy"]} if "test" in final else {}
        return {"gap": final["gap"], **test}
    rows = summary["members"]
    same = len(rows) == len(network.members) and rows[at]["l2"] == network.members[at].l2
    return {"gap": rows[at]["gap"], "val_accuracy": rows[at]["val_accuracy"]} if same else {}


def _averages(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean accuracy over the members, and its standard deviation if they are several."""
    result = dict[str, Any]()
    for split in ("val", "test"):
        name = f"{split}_accuracy"
        values = [float(m[name]) for m in members if m.get(name) is not None]
        if values and len(values) == len(members):
            result[f"{split}_accuracy"] = statistics.fmean(values)
            if len(values) > 1:
                result[f"{split}_accuracy_std"] = statistics.stdev(values)
    return result

"""Results as text: the closing table, a split's table, the report of a test."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from onelayer.data.naming import shown
from onelayer.training.members import ends_of, grouped
from onelayer.training.text import table

SPLITS = ("train", "val", "test")
BALANCED = "balanced_accuracy"


def collect(members: Sequence[dict[str, Any]], split: str, name: str) -> list[float]:
    """Return one metric of every member that has it and has not diverged."""
    return [m[split][name] for m in members if name in m.get(split, {}) and not m.get("diverged")]


def format_summary(summary: dict[str, Any]) -> str:
    """Return the closing table: a line per λ, mean ± standard deviation over its seeds.

    Members that have diverged are left out.
    """
    count = len(summary["members"])
    head = (
        f"{network_name(summary['hidden'])}, {summary['dataset']}, {summary['steps']} updates in "
        f"{summary['seconds']:.1f} s, {count} network{'s' * (count > 1)}; accuracy in %"
    )

    def cells(members: Sequence[dict[str, Any]]) -> list[str]:
        accuracies = [_mean_std(collect(members, split, "accuracy"), 100) for split in SPLITS]
        return [*accuracies, *(_mean(collect(members, "val", name)) for name in ("cost", "loss"))]

    def of_ensemble(one: dict[str, Any]) -> list[str]:
        loss = one["val"]["loss"] if "val" in one else None
        return ["-", *(_share(one, s) for s in SPLITS[1:]), "-", _mean([loss] if loss else [])]

    columns = [*SPLITS, "val cost", "val loss"]
    members, ensembles = summary["members"], summary.get("ensembles", [])
    lines = [head, *_lines(columns, members, ensembles, cells, of_ensemble)]
    if is_balanced(members):
        lines += ["balanced accuracy in %", *_balanced_lines(members, ensembles)]
    if any("±" in line for line in lines):
        lines.append("±: standard deviation over seeds")
    return "\n".join([*lines, *_notes(members, ensembles), *_unmeasured(summary)])


def is_balanced(members: Sequence[dict[str, Any]]) -> bool:
    """Return whether balanced accuracies were measured, as they are with class weights."""
    return any(BALANCED in member.get(split, {}) for member in members for split in SPLITS)


def _balanced_lines(
    members: Sequence[dict[str, Any]], ensembles: Sequence[dict[str, Any]]
) -> Iterator[str]:
    def cells(members: Sequence[dict[str, Any]]) -> list[str]:
        return [_mean_std(collect(members, split, BALANCED), 100) for split in SPLITS]

    def of_ensemble(one: dict[str, Any]) -> list[str]:
        return ["-", *(_share(one, split, BALANCED) for split in SPLITS[1:])]

    return _lines(SPLITS, members, ensembles, cells, of_ensemble)


def _unmeasured(summary: dict[str, Any]) -> Iterator[str]:
    """Explain why splits have no metrics if the trainer was given loaders."""
    members = summary["members"]
    missing = [name for name in SPLITS[:2] if not any(name in member for member in members)]
    if summary["dataset"] == "custom" and missing:
        yield (
            f"-: {' and '.join(missing)} not measured after the last update: the trainer was given "
            "loaders. A data module (datamodule=) has figures of every split."
        )


def format_split(
    members: Sequence[dict[str, Any]], split: str, ensembles: Sequence[dict[str, Any]] = ()
) -> str:
    """Return a split's table: a line per λ, mean ± standard deviation over its seeds.

    Args:
        members: members with their metrics, as in summary.json; diverged ones are left out.
        split: train, val or test.
        ensembles: ensembles with their metrics, each in a line below that of its λ.
    """

    def cells(members: Sequence[dict[str, Any]]) -> list[str]:
        return [_mean_std(collect(members, split, q), *kind) for q, kind in kinds.items()]

    def of_ensemble(one: dict[str, Any]) -> list[str]:
        loss = [one[split]["loss"]] if split in one else []
        shares = [_share(one, split, BALANCED)] if balanced else []
        return [_share(one, split), *shares, "-", _mean(loss)]

    balanced = is_balanced(members)
    kinds = {"accuracy": (100, 2), "cost": (1, 4), "loss": (1, 4)}
    columns = ["accuracy (%)", "cost", "loss"]
    if balanced:
        kinds = {"accuracy": (100, 2), BALANCED: (100, 2), "cost": (1, 4), "loss": (1, 4)}
        columns.insert(1, "balanced (%)")
    lines = _lines(columns, members, ensembles, cells, of_ensemble)
    return "\n".join([*lines, *_notes(members, ensembles)])


def _share(ensemble: dict[str, Any], split: str, name: str = "accuracy") -> str:
    """Return the accuracy of an ensemble in %, if it was measured on the split."""
    return f"{100 * ensemble[split][name]:.2f}" if split in ensemble else "-"


def _words_of(ensembles: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Explain the lines of ensembles."""
    for kind, one in {ensemble_kind(one): one for one in ensembles}.items():
        ends = ends_of(len(one.get("snapshots", [])))
        views = ",\n  over images and their mirror images" if "mirror" in one else ""
        yield f"{kind}: mean class probabilities of a λ's networks{ends}{views}"


def ensemble_kind(ensemble: dict[str, Any]) -> str:
    """Return the name of an ensemble's line."""
    return "snapshots" if "snapshots" in ensemble else "ensemble"


def _lines(
    columns: Sequence[str],
    members: Sequence[dict[str, Any]],
    ensembles: Sequence[dict[str, Any]],
    cells: Callable[[Sequence[dict[str, Any]]], list[str]],
    of_ensemble: Callable[[dict[str, Any]], list[str]],
) -> Iterator[str]:
    """Return a head, and a line for each λ with its number of networks and its ensembles below."""
    word = "networks" if any("step" in member for member in members) else "seeds"
    rows = list[list[str]]()
    for l2, group in grouped(members, itemgetter("l2")).items():
        gone = sum(member.get("diverged", False) for member in group)
        seeds = f"{len(group) - gone}/{len(group)}" if gone else str(len(group))
        rows.append([f"{l2:.3g}", seeds, *cells(group)])
        for one in (one for one in ensembles if one["l2"] == l2):
            rows.append(["", ensemble_kind(one), *of_ensemble(one)])
    yield from table(["l2", word, *columns], rows)


def _notes(members: Sequence[dict[str, Any]], ensembles: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Name the networks that have diverged, and explain the lines of ensembles."""
    gone = Counter(member["l2"] for member in members if member.get("diverged"))
    diverged = [f"{count} of l2 = {l2:.3g}" for l2, count in gone.items()]
    if diverged:
        yield f"diverged and left out: {', '.join(diverged)}"
    yield from _words_of(ensembles)


def network_name(hidden: int) -> str:
    """Return the name of a network in texts."""
    return f"{hidden} hidden units" if hidden else "linear softmax"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f}" if values else "-"


def _mean_std(values: Sequence[float], unit: float = 1, digits: int = 2) -> str:
    if not values:
        return "-"
    mean = f"{unit * statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {unit * statistics.stdev(values):.{digits}f}"


def format_report(report: dict[str, Any], most: int = 30) -> str:
    """Return the metrics in two lines and a line per class; only the worst if there are many."""
    top5 = report["top5_accuracy"]
    head = (
        f"{report['networks']}:\n  balanced accuracy {100 * report['balanced_accuracy']:.2f} %"
        + ("" if top5 is None else f", top-5 accuracy {100 * top5:.2f} %")
        + f", calibration error {100 * report['calibration_error']:.2f} %"
    )
    classes = report["classes"]
    title = f"{'class':<24} {'samples':>7} {'precision':>9} {'recall':>7} {'F1':>7}"
    if len(classes) > most:
        classes = sorted(classes, key=lambda one: one["f1"] or 0.0)[:most]
        title += f"  (the {most} of lowest F1)"
    return "\n".join([head, title, *map(_line, classes)])


def _line(one: dict[str, Any]) -> str:
    shares = (one["precision"], one["recall"], one["f1"])
    cells = [f"{100 * share:.2f}" if share is not None else "-" for share in shares]
    name = shown(one["class"], 24)
    return f"{name:<24} {one['samples']:>7} {cells[0]:>9} {cells[1]:>7} {cells[2]:>7}"

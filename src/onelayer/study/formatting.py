"""Tables of a study's results, for the terminal, as CSV and in Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from onelayer.core.gradcheck import Check
from onelayer.study.plan import (
    SHOWN,
    Candidate,
    best_of_each,
    end_of,
    format_setting,
    ranking,
    setting_of,
    standard_error,
    warn_of_end,
)
from onelayer.study.published import Published
from onelayer.training.members import grouped, rank
from onelayer.training.summary import SPLITS, collect
from onelayer.training.text import table


def format_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of equal keys as CSV, the keys above."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def percent(mean: float, error: float) -> str:
    """Return a share and its error in %, with two decimals."""
    return f"{100 * mean:.2f} ± {100 * error:.2f}"


def format_candidates(
    rows: Sequence[Mapping[str, Any]],
    candidates: Sequence[Candidate],
    best: Candidate,
    one_se: Candidate,
    chosen: Candidate,
    rule: str,
) -> str:
    """Return the ten best λ, every setting's best, the choice by either rule, and diverged λ.

    Args:
        rows: rows of search.csv.
        candidates: the λ that did not diverge.
        best: choice of the rule best.
        one_se: choice of the rule one_se.
        chosen: the choice.
        rule: its rule.
    """
    shown = {*ranking(candidates)[:10], *best_of_each(candidates)[:SHOWN], one_se}
    tried = [row["l2"] for row in rows if setting_of(row) == chosen.setting]
    cells, notes = list[list[str]](), list[str]()
    for c in (c for c in ranking(candidates) if c in shown):
        notes.append(_notes(c == best, c == one_se, c == chosen, c.l2, tried))
        setting = [json.dumps(value) for _, value in c.setting]
        mean = percent(c.mean, c.error)
        cells.append([str(c.stage), *setting, f"{c.l2:.3e}", str(c.seeds), mean])
    names = [name for name, _ in best.setting]
    lines = table(["stage", *names, "l2", "seeds", "val accuracy"], cells, notes)
    lines += _diverged_lines(rows)
    lines.append(f"accuracies in %; rule: {rule}, on validation alone")
    lines.append(
        "± standard error: over validation samples"
        + (" and seeds" if best.seeds > 1 else ", not over seeds (there is one)")
    )
    return "\n".join([*lines, *warn_of_end(chosen.l2, tried, "search.")])


def _notes(best: bool, one_se: bool, chosen: bool, l2: float, tried: Sequence[float]) -> str:
    """Return the note behind the line of a λ."""
    marks = {"best": best, "one_se": one_se, "<- chosen": chosen}
    end = " (end)" if chosen and end_of(l2, tried) else ""
    return ", ".join(mark for mark, holds in marks.items() if holds) + end


def _diverged_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    gone = [row for row in rows if row["diverged"]]
    for setting, own in grouped(gone, setting_of).items():
        words = [*format_setting(setting).split(), "l2 ="]
        listed = ", ".join(f"{l2:.3e}" for l2 in sorted({row["l2"] for row in own}))
        yield f"diverged, and no choice: {' '.join(words)} {listed}"


def format_path(summary: Mapping[str, Any]) -> str:
    """Return the closing table of a solve: a line per λ, and the chosen one's results."""
    tried = [row["l2"] for row in summary["members"]]
    chosen = summary["l2"]
    balanced = "val_balanced_accuracy"
    cells, notes = list[list[str]](), list[str]()
    for row in summary["members"]:
        l2 = row["l2"]
        best, one_se = (summary[rule]["l2"] == l2 for rule in ("best", "one_se"))
        notes.append(_notes(best, one_se, chosen == l2, l2, tried))
        cells.append(
            [
                f"{l2:.3g}", f"{row['cost']:.5f}", f"{row['gap']:.0e}", str(row["iterations"]),
                f"{100 * row['train_accuracy']:.2f}",
                percent(row["val_accuracy"], row["val_error"]),
                *([f"{100 * row[balanced]:.2f}"] if balanced in row else []),
            ]
        )  # fmt: skip
    columns = ["l2", "cost", "gap", "steps", "train", "val"]
    columns += ["balanced"] if balanced in summary["members"][0] else []
    lines = table(columns, cells, notes)
    final = summary["final"]
    test = f", test {100 * final['test']['accuracy']:.2f}" if "test" in final else ""
    if "balanced_accuracy" in final.get("test", {}):
        test += f" (balanced {100 * final['test']['balanced_accuracy']:.2f})"
    lines += [
        f"linear softmax, {summary['dataset']}, {summary['seconds']:.1f} s; accuracy in %, "
        "± standard error",
        "gap: upper bound of the distance to the minimum cost; steps: iterations",
        f"refitted on training and validation samples, l2 = {final['l2']:.4g}:",
        f"  cost {final['cost']:.6f}, gap {final['gap']:.1e}{test}",
    ]
    listed = summary["settings"].get("l2") is not None
    return "\n".join([*lines, *warn_of_end(chosen, tried, "solve.", listed)])


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    first, *others = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([first, "|" + "---|" * len(head), *others])


def gradients_table(checks: Iterable[Check]) -> str:
    """Return every check of a gradient with its error and bound, in Markdown."""
    head = ["network", "members", "parameter", "against", "relative error", "bound"]
    rows = []
    for c in checks:
        error, bound = c.words
        error += "" if c.passed else " **missed**"
        rows.append([c.network, str(c.members), c.parameter, c.judge, error, bound])
    return markdown(head, rows)


@dataclass(frozen=True)
class Result:
    """Networks trained with the same settings."""

    title: str  # of the exercise
    network: str
    members: Sequence[dict[str, Any]]  # as in summary.json
    published: Published | None  # for the same settings


def main_table(results: Iterable[Result]) -> str:
    """Return every result by split: published, handout, ours, and whether they agree."""
    head = ["exercise", "network", "split", "published", "handout", "ours"]
    rows = [_cells(result, split) for result in results for split in SPLITS]
    return markdown([*head, "published within ours ± 2 std"], rows)


def _cells(result: Result, split: str) -> list[str]:
    ours = collect(result.members, split, "accuracy")
    gone = len(result.members) - len(ours)
    mean = statistics.fmean(ours) if ours else math.nan
    std = statistics.stdev(ours) if len(ours) > 1 else 0.0
    theirs = result.published or Published("")
    published, handout = theirs.report.get(split), theirs.handout.get(split)
    within = ""
    if published is not None:
        within = "yes" if abs(published - 100 * mean) <= 200 * std else "no"
    figures = (percent(mean, std) if ours else "") + (f" ({gone} diverged)" if gone else "")
    shown = ["" if value is None else f"{value:g}" for value in (published, handout)]
    return [result.title, result.network, split, *shown, figures, within]


def search_table(
    found: Mapping[str, Any],
    as_published: Sequence[dict[str, Any]],
    images: int,
    published: Mapping[int, tuple[float, float]],
) -> str:
    """Return the best λ of each stage, ours as specified and as published, beside the report's.

    Args:
        found: content of search.json.
        as_published: members of the coarse stage as the report ran it.
        images: number of validation images.
        published: accuracy in % and λ by stage, if there are any for the same settings.
    """
    head = ["stage", "report: best val at λ", "as specified: best val ± SE at λ"]
    rows = []
    for stage, own in sorted(grouped(found["candidates"], itemgetter("stage")).items()):
        best = min(own, key=lambda c: rank(c["mean"], c["loss"], c["l2"]))
        theirs = "{} at {:.1e}".format(*published[stage]) if stage in published else ""
        ours = f"{percent(best['mean'], best['error'])} at {best['l2']:.2e}"
        rows.append([str(stage), theirs, ours, ""])
    if sound := [m for m in as_published if not m.get("diverged")]:
        coarse = min(sound, key=lambda m: rank(m["val"]["accuracy"], m["val"]["loss"], m["l2"]))
        p = coarse["val"]["accuracy"]
        rows[0][-1] = f"{percent(p, standard_error([p], images))} at {coarse['l2']:.2e}"
    best, one_se = found["best"], found["one_se"]
    return (
        markdown([*head, "as published: best val ± SE at λ"], rows)
        + f"\n\nBest mean: λ = {best['l2']:.3g} ({percent(best['mean'], best['error'])}). "
        f"Largest λ within one standard error: {one_se['l2']:.3g} ({100 * one_se['mean']:.2f}). "
        f"Chosen by the rule `{found['rule']}`, on validation alone: **{found['l2']:.3g}**. The "
        "test split was measured once, afterwards."
    )

"""Tables of what a study found, as text. Nothing here trains."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from onelayer.study.plan import Candidate, ranking


def format_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV, the keys above."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def format_candidates(
    candidates: Sequence[Candidate],
    best: Candidate,
    one_se: Candidate,
    chosen: Candidate,
    rule: str,
    diverged: Sequence[float] = (),
) -> str:
    """The ten best λ, the choice by either rule, and the λ of which a network diverged."""
    lines = [f"{'stage':>5} {'l2':>10} {'seeds':>5} {'val accuracy':>16}"]
    marked = list(dict.fromkeys([*ranking(candidates)[:10], one_se]))
    for c in marked:
        notes = [name for name, which in (("best", best), ("one_se", one_se)) if c == which]
        if c == chosen:
            notes.append("<- chosen")
        value = f"{100 * c.mean:.2f} ± {100 * c.error:.2f}"
        lines.append(
            f"{c.stage:>5} {c.l2:>10.3e} {c.seeds:>5} {value:>16}  {', '.join(notes)}".rstrip()
        )
    if diverged:
        lines.append(f"diverged, and no choice: l2 = {', '.join(f'{l2:.3e}' for l2 in diverged)}")
    lines.append(f"accuracies in %, ± standard error; rule: {rule}, on validation alone")
    return "\n".join(lines)

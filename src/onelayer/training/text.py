"""Tables as text: columns as wide as their cells need."""

from __future__ import annotations

from collections.abc import Sequence


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = (), left: int = 0
) -> list[str]:
    """Return the lines of a table whose columns are aligned.

    Args:
        head: names of the columns.
        rows: cells of each line.
        notes: what stands behind each line.
        left: how many of the first columns are aligned to the left.

    >>> table(["l2", "seeds"], [["0.1", "3"]])
    [' l2 seeds', '0.1     3']
    """
    wide = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
    lines = [
        " ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, wide, strict=True))
        )
        for cells in (head, *rows)
    ]
    behind = ["", *notes, *[""] * (len(rows) - len(notes))]
    return [f"{line}  {note}".rstrip() for line, note in zip(lines, behind, strict=True)]

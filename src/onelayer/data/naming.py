"""Names of columns, classes and groups: compared in one place, and shown and written safely."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

from onelayer.core.errors import InputError

NOT_CLASSES = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git")
"""Folders that programs leave among the classes' folders."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a cell of a spreadsheet's formula begins with


def match(
    names: Sequence[str], wanted: Sequence[str], what: str, where: str, whose: str
) -> list[int]:
    """Return the index in ``names`` of each name of ``wanted``.

    Args:
        names: those of a table or a data module.
        wanted: those of the training table or a checkpoint, in its order.
        what: columns or classes.
        where: whose ``names`` are, for the message.
        whose: whose ``wanted`` are.

    Raises:
        InputError: a name is missing or unknown; naming both.

    >>> match(["c", "a", "b"], ["a", "b", "c"], "columns", "test.csv", "train.csv")
    [1, 2, 0]
    """
    missing, unknown = set(wanted) - set(names), set(names) - set(wanted)
    if missing or unknown:
        told = [
            f"{kind}: {few([name for name in listed if name in found])}"
            for kind, listed, found in (("missing", wanted, missing), ("unknown", names, unknown))
            if found
        ]
        advice = "Rename, add or leave out columns; or list those to use: --data.x '[a,b]'."
        raise InputError(
            f"{where} has other {what} than {whose}: {'; '.join(told)}.\n"
            f"{what.capitalize()} are matched by name, in any order."
            + (f"\n{advice}" if what == "columns" else "")
        )
    index = {name: i for i, name in enumerate(names)}
    return [index[name] for name in wanted]


def check_order(
    names: Sequence[str], wanted: Sequence[str], what: str, where: str, whose: str
) -> None:
    """Raise :class:`InputError` unless names are the wanted ones, in their order."""
    order = match(names, wanted, what, where, whose)
    if order != list(range(len(order))):
        raise InputError(
            f"{where} has its {what} in another order than {whose}: {few(names)} here, and "
            f"{few(wanted)} there.\nUse data with the names in that order."
        )


def check_distinct(names: Sequence[str], what: str, where: str) -> None:
    """Raise :class:`InputError` for a name that is used twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{where}: {what} must not repeat a name, and {few(twice)} is there more than once.\n"
            "Rename one of them."
        )


def check_classes(names: Sequence[str], where: str) -> None:
    """Refuse invalid names of classes, and warn about names that are nearly the same.

    Raises:
        InputError: a name is blank, is used twice, or is that of a folder left by a program.
    """
    check_distinct(names, "classes", where)
    if not all(name.strip() for name in names):
        raise InputError(
            f"{where}: class {[bool(name.strip()) for name in names].index(False)} has a blank "
            "name: every class needs a name."
        )
    if found := sorted(set(names) & set(NOT_CLASSES)):
        raise InputError(
            f"{where} has a class {found[0]!r}, which is a folder that another program has left.\n"
            "Delete the folder, or make the features anew without it."
        )
    warn_of_similar(names, "classes", where)


def warn_of_similar(names: Sequence[str], what: str, where: str) -> None:
    """Warn about names that differ by blanks or by upper and lower case only."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(name.split()).casefold(), []).append(name)
    for found in (group for group in alike.values() if len(group) > 1):
        listed = " and ".join(repr(name) for name in found[:3])
        warnings.warn(
            f"{where}: the {what} {listed} differ by blanks or case only. They are kept apart; "
            "rename them if they are one.",
            stacklevel=2,
        )


def shown(name: object, most: int | None = 200) -> str:
    r"""Return a stranger's name for a terminal: what does not print is escaped.

    >>> print(shown("cat" + chr(27) + "[31m"))
    cat\x1b[31m
    """
    text = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(name)
    )
    return text if most is None or len(text) <= most else text[: most - 1] + "…"


def shown_lines(message: object) -> str:
    """Return a message of several lines for a terminal, each as :func:`shown` has it."""
    return "\n".join(shown(line, None) for line in str(message).split("\n"))


def few(names: Iterable[object], most: int = 8) -> str:
    """Return names for a message: the first ones, and how many there are."""
    listed = [shown(name, 60) for name in names]
    more = f", … ({len(listed)} in all)" if len(listed) > most else ""
    return ", ".join(listed[:most])[:400] + more


def cell(name: str, mark: str = "'") -> str:
    """Return a stranger's name for a cell of a CSV file, which no spreadsheet takes for a formula.

    Args:
        name: of a class or a file; a number, such as -1, stays as it is.
        mark: put in front of a name that begins as formulas do.

    >>> [cell(name) for name in ("cat", "-1", "=1+1", "-cat")]
    ['cat', '-1', "'=1+1", "'-cat"]
    """
    return name if not name.startswith(_FORMULA) or is_number(name) else f"{mark}{name}"


def is_number(value: object) -> bool:
    """Return whether a value, or what a text says, is a number.

    >>> [is_number(value) for value in ("-1.5", "1e3", "red", None)]
    [True, True, False, False]
    """
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True

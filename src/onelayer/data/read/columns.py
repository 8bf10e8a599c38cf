"""Tables with named columns: .csv and .parquet, read by pyarrow."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from onelayer.core.errors import InputError, first_line
from onelayer.data.naming import few, is_number
from onelayer.data.read.convert import as_floats, labels, weights
from onelayer.data.table import Array, Columns, Table

EXTRA = 'pip install "onelayer[arrays]"'
_INDEX = re.compile(r"|Unnamed: 0(\.\d+)*|__index_level_\d+__")  # what pandas calls its index
_WHOLE = re.compile(r"-?(0|[1-9]\d*)")
_FLOAT = re.compile(r"-?(0|[1-9]\d*)(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
_NUMBERS = ("int", "uint", "float", "double", "half", "bool", "null")
_SINGLE = {"float", "halffloat", "int8", "int16", "uint8", "bool"}  # types that float32 holds


def read_columns(path: Path, columns: Columns, labelled: bool) -> Table:
    """Read a .csv or .parquet.

    Raises:
        InputError: naming the file and, where there is one, the row and the column.
    """
    table = _arrow(path, [name for what, name in columns.others.items() if what != "weight"])
    there = list(table.column_names)
    _refuse_images(table, path)
    named, index = _features_of(table, columns)
    wanted = [("x", name) for name in named]
    _check_names([*wanted, *(columns.others.items() if labelled else ())], there, path)
    if not labelled and columns.x is None:
        _check_head(named, path)
    first = 2 if path.suffix.lower() == ".csv" else 0  # a line of a text file, its head is line 1
    if table.num_rows == 0 or not named:
        raise InputError(f"{path} is empty: it has {table.num_rows} rows, {len(named)} features.")
    if index:
        warnings.warn(
            f"{path}: the column {few(map(repr, index))} was left out: it is the index that pandas "
            "writes.\nTo learn from it, list it in --data.x.",
            stacklevel=2,
        )

    def column(name: str | None, what: str) -> Array | None:
        if not labelled or name is None:
            return None
        return labels(_values(table, name, path), f"{path}: column {name!r}", what, first)

    x = _matrix(table, named, path, first)
    weight = None
    if labelled and columns.weight:
        numbers = _matrix(table, [columns.weight], path, first)
        weight = weights(numbers, f"{path}: column {columns.weight!r}", first)
    return Table(
        x,
        column(columns.y, "labels"),
        column(columns.groups, "groups"),
        where=str(path),
        columns=named if x.shape[1] == len(named) else None,
        first_row=first,
        weight=weight,
    )


def needed(name: str, path: Path) -> Any:
    """Import a library that reads a file.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{path}: {package} reads it, and is not installed: {EXTRA}.") from error


# ---- which columns


def _features_of(table: Any, columns: Columns) -> tuple[list[str], list[str]]:
    """Return the columns of the features, and those of pandas' index that are left out."""
    if isinstance(columns.x, str):
        return [columns.x], []
    if columns.x is not None:
        return list(columns.x), []
    if "X" in table.column_names and _is_list(table.schema.field("X").type):
        return ["X"], []
    given = [name for name in table.column_names if name not in columns.others.values()]
    index = [name for name in given if _INDEX.fullmatch(name) or name in _pandas_index(table)]
    return [name for name in given if name not in index], index


def _pandas_index(table: Any) -> list[str]:
    """Return the columns of a Parquet file that pandas would make the index."""
    try:
        kept = json.loads((table.schema.metadata or {})[b"pandas"])["index_columns"]
        return [name for name in kept if isinstance(name, str)]
    except (KeyError, ValueError, TypeError):
        return []


def _check_names(wanted: Sequence[tuple[str, str]], there: Sequence[str], path: Path) -> None:
    """Raise :class:`InputError` unless each name is that of one column."""
    counts = Counter(there)
    for argument, name in wanted:
        if counts[name] > 1:
            raise InputError(
                f"{path} has {counts[name]} columns called {name!r}: rename all but one."
                + _headless(there)
            )
        if not counts[name]:
            raise InputError(
                f"{path} has no column {name!r}: it has {few(there, 10)}.\nSay which with "
                f"--data.{argument} COLUMN." + _headless(there)
            )


def _headless(there: Sequence[str]) -> str:
    """Return a hint where the first line looks like data, else nothing."""
    if 2 * sum(map(is_number, there)) < len(there):
        return ""
    return "\nIts first line must be the names of the columns; this one looks like data."


def _check_head(names: Sequence[str], path: Path) -> None:
    """Refuse a first line of numbers, which would be lost; numbers in order may be names."""
    if names and all(map(is_number, names)) and path.suffix.lower() == ".csv":
        steps = np.diff([float(name) for name in names])
        if not ((steps > 0).all() or (steps < 0).all()):
            raise InputError(
                f"{path}: its first line is {few(names)}: it must be the names of the columns."
                "\nPut a line of names above it."
            )


def _refuse_images(table: Any, path: Path) -> None:
    """Raise :class:`InputError` for a column of image files, as the Hugging Face Hub has them."""
    for field in table.schema:
        if str(field.type).startswith("struct<bytes: binary"):
            raise InputError(
                f"{path}: column {field.name!r} holds image files. They are read by:\n"
                "--data DatasetDataModule --data.train onelayer.HuggingFace --data.train.path "
                f"{path.parent} --data.train.split train --data.x {field.name} --data.y LABEL"
            )


# ---- reading


def _arrow(path: Path, text: Sequence[str]) -> Any:
    """Read a file; of a .csv the columns ``text`` as they are written, so that 007 is not 7."""
    kind = path.suffix.lower().removeprefix(".")
    reader = needed(f"pyarrow.{kind}", path)
    if kind == "csv":
        _check_separator(path)
    try:
        if kind == "parquet":
            _check_size(reader.read_metadata(path), path)
        if kind == "csv":
            options = reader.ConvertOptions(column_types=dict.fromkeys(text, "string"))
            table = reader.read_csv(path, convert_options=options)
        else:
            table = reader.read_table(path)
        _ = table.column_names  # which are decoded only now
        return table
    except InputError:
        raise
    except Exception as error:  # its own kinds
        if kind == "csv":
            _check_encoding(path)
        raise InputError(f"{path} is no whole .{kind} file: {first_line(error)}.") from error


def _check_size(metadata: Any, path: Path) -> None:
    """Raise :class:`InputError` for a table that would not fit in memory."""
    wanted, free = 8 * metadata.num_rows * metadata.num_columns, psutil.virtual_memory().available
    if wanted > free:
        raise InputError(
            f"{path} has {metadata.num_rows} rows of {metadata.num_columns} columns, which need "
            f"{wanted / 1e9:.1f} GB: {free / 1e9:.1f} GB are free.\nTwo .npy files may be larger "
            "than memory: --data.train '[X.npy,y.npy]'."
        )


def _check_separator(path: Path) -> None:
    """Raise :class:`InputError` where the first line has other separators than commas."""
    with path.open("rb") as file:
        head = file.readline(10**6)
    for mark, name in ((b";", ";"), (b"\t", "\\t")):
        if mark in head and b"," not in head:
            raise InputError(
                f"{path}: its columns are separated by {name!r}, and must be by commas.\nWrite it "
                f"anew: pandas.read_csv({path.name!r}, sep={name!r}).to_csv('a.csv', index=False)."
            )


def _check_encoding(path: Path) -> None:
    """Raise :class:`InputError` for the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: line {number} is not UTF-8: {line[:60]!r}.\nSave it as UTF-8, for "
                    "example with iconv -f latin1 -t utf-8."
                ) from error


def _values(table: Any, name: str, path: Path) -> Array:
    """Return a column's values as numpy holds them; of text or with gaps, objects."""
    column = table.column(name)
    kind = str(column.type)
    if kind == "binary" and path.suffix.lower() == ".csv":
        _check_encoding(path)
    if "string" in kind or column.null_count or kind.startswith("dictionary"):
        values = np.array(column.to_pylist(), dtype=object)
        return _restored(values) if path.suffix.lower() == ".csv" else values
    return np.asarray(column.to_numpy())


def _restored(text: Array) -> Array:
    """Return text as numbers where each is written as a number is, without leading zeros."""
    for pattern, kind in ((_WHOLE, np.int64), (_FLOAT, np.float64)):
        if all(isinstance(value, str) and pattern.fullmatch(value.strip()) for value in text):
            with suppress(OverflowError):  # whole numbers beyond 64 bits are names
                return text.astype(kind)
    return text


def _matrix(table: Any, names: Sequence[str], path: Path, first_row: int) -> Tensor:
    """Return columns of numbers, or one of lists of equal length, as features (n, d)."""
    if len(names) == 1 and _is_list(table.schema.field(names[0]).type):
        return _lists(table.column(names[0]), f"{path}: column {names[0]!r}")
    kinds = {str(table.column(name).type) for name in names}
    out = np.empty((table.num_rows, len(names)), np.float32 if kinds <= _SINGLE else np.float64)
    for i, name in enumerate(names):
        out[:, i] = _numbers(table.column(name), name, path, first_row)
    return torch.from_numpy(out)


def _is_list(kind: Any) -> bool:
    return re.match(r"(large_|fixed_size_)?list", str(kind)) is not None


def _lists(column: Any, where: str) -> Tensor:
    """Return a column of lists of numbers, all of one length, as features (n, d)."""
    import pyarrow.compute as pc

    lengths = np.array(pc.list_value_length(column).to_pylist(), dtype=object)
    if len(wrong := [row for row, length in enumerate(lengths) if length != lengths[0]]):
        raise InputError(
            f"{where}, row {wrong[0]} has {lengths[wrong[0]] or 0} numbers, and row 0 has "
            f"{lengths[0] or 0}: all lists must be of one length."
        )
    flat = pc.list_flatten(column)
    if not str(flat.type).startswith(_NUMBERS):
        raise InputError(
            f"{where} has lists of {flat.type}: features are one list of numbers a row.\n"
            "Lay nested lists flat, or write the features as .npz."
        )
    if flat.null_count:
        row = int(np.flatnonzero(flat.is_null().to_numpy())[0]) // int(lengths[0])
        raise InputError(
            f"{where}, row {row} has a list with a gap (null): every feature must be a number.\n"
            "Fill what is missing, or leave the row out."
        )
    values = flat.to_numpy()
    return as_floats(torch.from_numpy(np.array(values).reshape(len(lengths), -1)))


def _numbers(column: Any, name: str, path: Path, first_row: int) -> Array:
    kind = str(column.type)
    if not kind.startswith(_NUMBERS):
        if kind == "binary" and path.suffix.lower() == ".csv":
            _check_encoding(path)
        for row, value in enumerate(column.to_pylist()):
            if not is_number(value):
                raise InputError(
                    f"{path}: row {row + first_row}, column {name!r} is {str(value)[:40]!r}: "
                    "features are numbers.\nName the columns of features with --data.x "
                    "'[a,b]', or leave the column out of the file."
                )
        return np.array([float(value) for value in column.to_pylist()])
    return np.array(column.to_pylist(), dtype=np.float64) if column.null_count else (
        np.asarray(column.to_numpy(), dtype=np.float64)
    )  # fmt: skip

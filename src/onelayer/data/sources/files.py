"""Tables of features and labels in files: .npz, .npy, .pt, .safetensors, .csv, .parquet.

Nothing that a file holds is ever executed: pickles and arrays of objects are refused.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onelayer.core.checks import at_home
from onelayer.core.errors import InputError, first_line

Array = NDArray[Any]
SUFFIXES = (".npz", ".npy", ".pt", ".safetensors", ".csv", ".parquet")
CLASSES = ("classes", "class_names", "target_names")
"""Keys under which an .npz, .pt or .safetensors may hold the names of the classes."""
EXTRA = 'pip install "onelayer[arrays]"'
_EXACT = 2**24  # whole numbers that float32 holds


@dataclass(frozen=True)
class Columns:
    """What is called what in a file.

    Args:
        x: key or column of the features; or several columns. Where a .csv or .parquet has no column
            of that name, all columns but those of labels and groups are features.
        y: of the labels.
        groups: of the groups that a validation split must not tear apart, if there are any.
    """

    x: str | Sequence[str] = "X"
    y: str = "y"
    groups: str | None = None


@dataclass(frozen=True)
class Table:
    """Features and labels as they were given.

    ``x`` is (n, d), bytes or floating, ``y`` (n,) whole numbers or strings as numpy holds them, or
    None where only features were asked for; ``where`` names the file in messages, ``columns`` the
    features, ``first_row`` is the number that a file's own reader would give to row 0. ``mapped``
    tells a file that is not in memory whether it is about to be read in order.
    """

    x: Tensor
    y: Array | None
    groups: Array | None = None
    classes: list[str] | None = None
    where: str = "X"
    columns: Sequence[str] | None = None
    first_row: int = 0
    mapped: Callable[[bool], None] | None = None
    shape: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        n = len(self.x)
        if n == 0 or self.x.ndim != 2 or self.x.shape[1] == 0:
            raise InputError(
                f"{self.where} is empty: its features are {tuple(self.x.shape)}, and must be "
                "(n, d), a row of at least one number each."
            )
        for name in ("y", "groups"):
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise InputError(
                    f"{self.where}: {name} is {value.shape}, and X has {n} rows: there must be one "
                    "label for each row."
                )

    def __len__(self) -> int:
        return len(self.x)

    def place(self, row: int, column: int) -> str:
        """How a person finds a number: file, row and column."""
        name = f"column {self.columns[column]!r}" if self.columns else f"column {column}"
        return f"{self.where}: row {row + self.first_row}, {name}"


def read_table(given: Any, columns: Columns, labelled: bool = True) -> Table:
    """Read a table from a file, two .npy files, or arrays in Python.

    Args:
        given: a path, two paths of .npy (features, labels), or arrays (X, y) or X.
        columns: what is called what.
        labelled: whether labels are needed; otherwise they are not looked for.

    Raises:
        InputError: naming the file, what is wrong in it and what would be right.
    """
    if _are_arrays(given):
        arrays = given if isinstance(given, tuple | list) else [given]
        named = dict(zip(("X", "y"), arrays, strict=False))
        return _of_arrays(named, Columns(), labelled, "the given table")
    paths = _paths(given)
    for path in paths:
        if not path.is_file():
            raise InputError(f"there is no file {path}." if not path.exists() else
                             f"{path} is no file: give one of {' '.join(SUFFIXES)}.")  # fmt: skip
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty: it has no byte.")
    suffix = paths[0].suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{paths[0]}: its name must end in one of {' '.join(SUFFIXES)}.")
    if len(paths) > 1 or suffix == ".npy":
        return _of_npy(paths, labelled)
    if suffix in (".csv", ".parquet"):
        return _of_columns(paths[0], columns, labelled)
    read = {".npz": _npz, ".pt": _pt, ".safetensors": _safetensors}[suffix]
    wanted = [columns.x, *([columns.y] if labelled else [])] + [columns.groups] * bool(
        columns.groups and labelled
    )
    names = [name for name in wanted if isinstance(name, str)]
    return _of_arrays(read(paths[0], names), columns, labelled, str(paths[0]))


def name_of(given: Any) -> str:
    """What data are called: the file's name without its ending; arrays are "arrays"."""
    if given is None or _are_arrays(given):
        return "arrays"
    return _paths(given)[0].stem


def _are_arrays(given: Any) -> bool:
    first = given[0] if isinstance(given, tuple | list) and given else given
    return not isinstance(first, str | Path)


def _paths(given: Any) -> list[Path]:
    names: list[Any] = [given] if isinstance(given, str | Path) else list(given)
    if len(names) == 1 and str(names[0]).endswith(".npy") and not at_home(names[0]).exists():
        names = str(names[0]).split(",")  # as typed, without the brackets of a list
    if len(names) > 2 or (len(names) == 2 and not all(str(n).endswith(".npy") for n in names)):
        raise InputError(
            f"{str(given)[:200]}: give one file, or two .npy, of features and of labels."
        )
    return [at_home(name) for name in names]


# ---- arrays by key


def _of_arrays(arrays: Mapping[str, Any], columns: Columns, labelled: bool, where: str) -> Table:
    if not isinstance(columns.x, str):
        raise InputError(f"{where}: x must be one key, not {list(columns.x)!r}.")
    wanted = {"x": columns.x, **({"y": columns.y} if labelled else {})}
    if labelled and columns.groups:
        wanted["groups"] = columns.groups
    for argument, key in wanted.items():
        if key not in arrays:
            raise InputError(
                f"{where} has no {key!r}: it has {_listed(arrays)}.\nSay which with --data."
                f"{argument} KEY."
            )
    x, shape = _features(arrays[columns.x], f"{where}: {columns.x!r}")
    names = next((arrays[key] for key in CLASSES if key in arrays), None)
    return Table(
        x,
        labels(arrays[columns.y], f"{where}: {columns.y!r}") if labelled else None,
        labels(arrays[columns.groups], f"{where}: {columns.groups!r}", "groups")
        if labelled and columns.groups
        else None,
        None if names is None else [str(name) for name in np.asarray(names).tolist()],
        where,
        shape=shape,
    )


def _listed(keys: Any) -> str:
    names = [str(key) for key in keys]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) + more) if names else "nothing"


def _features(value: Any, where: str) -> tuple[Tensor, tuple[int, ...]]:
    """Features (n, d) as a tensor, and the shape of one sample."""
    if not isinstance(value, Tensor):
        value = np.asarray(value)
        if value.dtype.kind not in "fiub":
            raise InputError(
                f"{where} is an array of {value.dtype}: features are numbers, float16, float32, "
                "float64 or uint8."
            )
        value = torch.from_numpy(np.ascontiguousarray(value.astype(_native(value), copy=False)))
    x = value.detach()
    if x.is_complex() or x.layout != torch.strided:
        raise InputError(f"{where} is {x.dtype}, {x.layout}: features are dense real numbers.")
    shape = tuple(x.shape[1:])
    x = x.flatten(1) if x.ndim > 2 else x.unsqueeze(1) if x.ndim == 1 and len(x) else x
    return _as_features(x), shape if len(shape) == 3 else ()


def _native(value: Array) -> np.dtype[Any]:
    """The dtype in this machine's byte order, as torch has it."""
    wide = {"u2": "i4", "u4": "i8", "u8": "i8", "f16": "f8"}
    kind = f"{value.dtype.kind}{value.dtype.itemsize}"
    return np.dtype(wide.get(kind, kind)) if value.dtype.kind != "b" else value.dtype


def _as_features(x: Tensor) -> Tensor:
    """Bytes and floats as they are, other whole numbers as floats that hold them."""
    if x.dtype == torch.uint8 or x.dtype in (torch.float16, torch.float32, torch.float64):
        return x
    if x.dtype.is_floating_point:  # bfloat16
        return x.float()
    large = x.numel() and x.dtype != torch.bool and int(x.abs().max()) > _EXACT
    return x.double() if large else x.float()


def labels(value: Any, where: str, what: str = "labels") -> Array:
    """Labels, or groups, (n,): whole numbers or strings, as numpy holds them.

    Raises:
        InputError: they are floats, or objects.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    y = np.asarray(value)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind == "O":
        y = _of_objects(y, where, what)
    if y.dtype.kind == "f" and len(y):
        raise InputError(
            f"{where}[0] = {y.flat[0]} is a float: {what} are whole numbers or strings.\nWrite "
            "them as such, y.astype(int) where they are whole."
        )
    if y.dtype.kind not in "iubUS":
        raise InputError(f"{where} is an array of {y.dtype}: {what} are whole numbers or strings.")
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8")
    return y.astype(np.int64) if y.dtype.kind in "iub" else y


def _of_objects(y: Array, where: str, what: str) -> Array:
    for row, value in enumerate(y):
        if not isinstance(value, str):
            raise InputError(
                f"{where}, row {row}, is {str(value)[:40]!r}: {what} are whole numbers or strings, "
                "and none is missing."
            )
    return y.astype(str)


# ---- one function per kind of file: what it has under the names, and the names of classes


def _npz(path: Path, names: Sequence[str]) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = {*names, *CLASSES} & set(archive.files)
            found = dict.fromkeys(archive.files)
            return found | {key: _loaded(archive, key, path) for key in wanted}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"{path} is no whole .npz file: {first_line(error)}.") from error


def _loaded(archive: Any, key: str, path: Path) -> Array:
    try:
        return np.asarray(archive[key])
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise InputError(
            f"{path}: {key!r} is an array of objects, which is a pickle: refused, nothing of it "
            "was run.\nSave numbers, or strings as np.array(names, dtype=str)."
        ) from error


def _pt(path: Path, names: Sequence[str]) -> dict[str, Any]:
    import pickle

    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is no archive as torch.save writes it, but a pickle, or damaged: refused, "
            "nothing of it was run."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled code or objects other than tensors: refused, nothing of it was "
            'run.\nSave tensors: torch.save({"X": X, "y": y}, …).'
        ) from error
    except Exception as error:  # whatever a damaged archive makes torch do
        raise InputError(f"{path} is no whole .pt file: {first_line(error)}.") from error
    if isinstance(content, tuple | list) and len(content) == 2 and len(names) < 3:
        content = dict(zip((*names, "y"), content, strict=False))
    if isinstance(content, Tensor):
        content = {names[0]: content}
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}: a dict of tensors is needed, or (X, y)."
        )
    return content


def _safetensors(path: Path, names: Sequence[str]) -> dict[str, Any]:
    safe = _needed("safetensors", path)
    try:
        with safe.safe_open(str(path), framework="pt") as file:
            keys = set(file.keys())
            return {key: file.get_tensor(key) if key in names else None for key in keys}
    except Exception as error:  # its own kinds
        raise InputError(f"{path} is no whole .safetensors file: {first_line(error)}.") from error


def _needed(name: str, path: Path) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{path}: {package} reads it, and is not installed: {EXTRA}.") from error


# ---- .npy, which may be larger than memory


def _of_npy(paths: Sequence[Path], labelled: bool) -> Table:
    if labelled and len(paths) < 2:
        raise InputError(
            f"{paths[0]} has features alone: give it with its labels, "
            f"'[{paths[0]},{paths[0].stem}_y.npy]'."
        )
    x = _mapped(paths[0])
    if (x.dtype.kind == "f" and x.dtype.isnative) or x.dtype == np.uint8:
        tensor, paging = torch.from_numpy(x), _pager(x)
        shape = tuple(x.shape[1:])
        flat = tensor.flatten(1) if tensor.ndim > 2 else tensor
        if flat.ndim == 1:
            flat = flat.unsqueeze(1)
        shape = shape if len(shape) == 3 else ()
    else:
        (flat, shape), paging = _features(x, str(paths[0])), None
    y = labels(_mapped(paths[1]), str(paths[1])) if labelled else None
    return Table(flat, y, where=str(paths[0]), mapped=paging, shape=shape)


def _mapped(path: Path) -> Array:
    try:
        # c: private, so that torch may have it; what nobody writes to stays the file's pages
        found: Array = np.load(path, mmap_mode="c", allow_pickle=False)
        return found
    except ValueError as error:
        if "object" in str(error).lower() or "pickle" in str(error).lower():
            raise InputError(
                f"{path} is an array of objects, which is a pickle: refused, nothing of it was run."
            ) from error
        raise InputError(f"{path} is no whole .npy file: {first_line(error)}.") from error
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}.") from error


def _pager(x: Array) -> Callable[[bool], None]:
    """A function that tells the system how a mapped array is about to be read, when it changes."""
    owner: Any = getattr(x, "_mmap", None)
    state: list[bool | None] = [None]

    def paging(in_order: bool) -> None:
        if owner is not None and state[0] is not in_order and hasattr(mmap, "MADV_RANDOM"):
            owner.madvise(mmap.MADV_SEQUENTIAL if in_order else mmap.MADV_RANDOM)
            state[0] = in_order

    return paging


# ---- tables with columns


def _of_columns(path: Path, columns: Columns, labelled: bool) -> Table:
    table = _arrow(path)
    there = list(table.column_names)
    named = [columns.x] if isinstance(columns.x, str) else list(columns.x)
    if columns.x == "X" and "X" not in there:
        named = [name for name in there if name not in (columns.y, columns.groups)]
    others = [columns.y] * labelled + [columns.groups] * bool(labelled and columns.groups)
    for name in [*named, *others]:
        if name not in there:
            argument = "y" if name == columns.y else "groups" if name == columns.groups else "x"
            raise InputError(
                f"{path} has no column {name!r}: it has {_listed(there)}.\nSay which with "
                f"--data.{argument} COLUMN."
            )
    first = 2 if path.suffix.lower() == ".csv" else 0  # a line of a text file, its head is line 1
    if table.num_rows == 0 or not named:
        raise InputError(f"{path} is empty: it has {table.num_rows} rows, {len(named)} features.")
    x = _matrix(table, named, path, first)
    return Table(
        x,
        labels(_values(table, columns.y), f"{path}: column {columns.y!r}") if labelled else None,
        labels(_values(table, columns.groups), f"{path}: column {columns.groups!r}", "groups")
        if labelled and columns.groups
        else None,
        where=str(path),
        columns=named if x.shape[1] == len(named) else None,
        first_row=first,
    )


def _arrow(path: Path) -> Any:
    kind = path.suffix.lower().removeprefix(".")
    reader = _needed(f"pyarrow.{kind}", path)
    try:
        return reader.read_csv(path) if kind == "csv" else reader.read_table(path)
    except Exception as error:  # its own kinds
        raise InputError(f"{path} is no whole .{kind} file: {first_line(error)}.") from error


def _values(table: Any, name: str) -> Array:
    """A column's values as numpy holds them; of text or with gaps, objects."""
    column = table.column(name)
    kind = str(column.type)
    if "string" in kind or column.null_count or kind.startswith("dictionary"):
        return np.array(column.to_pylist(), dtype=object)
    return np.asarray(column.to_numpy())


def _matrix(table: Any, names: Sequence[str], path: Path, first_row: int) -> Tensor:
    """Columns of numbers, or one of lists of equal length, as features (n, d)."""
    if len(names) == 1 and "list" in str(table.column(names[0]).type):
        rows = table.column(names[0]).to_pylist()
        widths = {len(row) if row is not None else 0 for row in rows}
        if len(widths) > 1:
            raise InputError(f"{path}: the lists of column {names[0]!r} have {widths} numbers.")
        return _as_features(torch.tensor(rows, dtype=torch.float32))
    out = np.empty((table.num_rows, len(names)), dtype=_common(table, names))
    for i, name in enumerate(names):
        out[:, i] = _numbers(table.column(name), name, path, first_row)
    return torch.from_numpy(out)


def _common(table: Any, names: Sequence[str]) -> type:
    kinds = {str(table.column(name).type) for name in names}
    return np.float32 if kinds <= {"float", "halffloat", "int8", "int16", "uint8", "bool"} else (
        np.float64
    )  # fmt: skip


def _numbers(column: Any, name: str, path: Path, first_row: int) -> Array:
    kind = str(column.type)
    if not kind.startswith(("int", "uint", "float", "double", "half", "bool", "null")):
        for row, value in enumerate(column.to_pylist()):
            if not _is_number(value):
                raise InputError(
                    f"{path}: row {row + first_row}, column {name!r} is {str(value)[:40]!r}: "
                    "features are numbers.\nName the columns of features with --data.x "
                    "'[a,b]', or leave the column out of the file."
                )
        return np.array([float(value) for value in column.to_pylist()])
    return np.array(column.to_pylist(), dtype=np.float64) if column.null_count else (
        np.asarray(column.to_numpy(), dtype=np.float64)
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True

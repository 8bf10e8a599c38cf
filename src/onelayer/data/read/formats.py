"""Tables of features and labels in files: .npz, .npy, .pt, .safetensors, .csv, .parquet.

Nothing that a file holds is ever executed: pickles and arrays of objects are refused.
"""

from __future__ import annotations

import math
import mmap
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from onelayer.core.checks import at_home
from onelayer.core.errors import InputError, first_line
from onelayer.data.backbone import Backbone
from onelayer.data.naming import few
from onelayer.data.read.columns import needed, read_columns
from onelayer.data.read.convert import as_features, is_channels_last, labels, weights
from onelayer.data.table import Array, Columns, Table

SUFFIXES = (".npz", ".npy", ".pt", ".safetensors", ".csv", ".parquet")
CLASSES = ("classes", "class_names", "target_names")
"""Keys under which an .npz, .pt or .safetensors may hold the names of the classes."""
BACKBONE = "backbone"  # key of the description that onelayer features writes into an .npz
_SPLIT = re.compile(r"^train(ing)?[\W_]+|[\W_]+train(ing)?$", re.IGNORECASE)
_NAMELESS = ("x", "data", "features", "embeddings", "train", "training")  # files called so
_LARGER = "\nTwo .npy files may be larger than memory: --data.train '[X.npy,y.npy]'."
_AS_THEY_ARE = (np.float16, np.float32, np.float64, np.uint8)  # what torch can map
_COPIED = 10**9  # bytes of an .npy's images that are put in another order in memory, at most
_TO_NPZ = "np.savez('a.npz', X=…, y=…)"
_INSTEAD = {
    (".h5", ".hdf5"): "With h5py: np.savez('a.npz', X=file['X'][:], y=file['y'][:]).",
    (".tsv", ".tab", ".txt"): "Write it with commas: pandas.read_csv(NAME, sep='\\t')"
    ".to_csv('a.csv', index=False).",
    (".xls", ".xlsx", ".ods"): "Save the sheet as .csv, with a line of column names.",
    (".gz", ".bz2", ".xz", ".zip", ".zst"): "Unpack it first, for example with gunzip.",
    (".pth", ".bin", ".ckpt"): "If torch.save wrote tensors, rename it to .pt: {'X': X, 'y': y}.",
    (".pkl", ".pickle", ".joblib"): f"Pickles are never read: write {_TO_NPZ}.",
    (".mat",): f"Read it with scipy.io.loadmat and write {_TO_NPZ}.",
    (".feather", ".arrow", ".json", ".jsonl"): "Write it as .parquet, with pandas for example.",
    (".png", ".jpg", ".jpeg"): "Folders of images: --data DatasetDataModule --data.train "
    "torchvision.datasets.ImageFolder --data.train.root FOLDER.",
}


def read_table(given: Any, columns: Columns, labelled: bool = True) -> Table:
    """Read a table from a file, two .npy files, or arrays in Python.

    Args:
        given: a path, two paths of .npy (features, labels), or arrays X, (X, y) or (X, y, weight).
        columns: what is called what.
        labelled: whether labels are needed; otherwise they are not looked for.

    Raises:
        InputError: naming the file, what is wrong in it and what would be right.
    """
    if _are_arrays(given):
        return _of_given(given, columns, labelled)
    paths = _paths(given)
    for path in paths:
        if not path.is_file():
            raise InputError(f"there is no file {path}." if not path.exists() else
                             f"{path} is no file: give one of {' '.join(SUFFIXES)}.")  # fmt: skip
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty: it has no byte.")
    suffix = paths[0].suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{paths[0]}: its name must end in one of {' '.join(SUFFIXES)}.{_instead_of(suffix)}"
        )
    if len(paths) > 1 or suffix == ".npy":
        if labelled:
            _refuse_names(columns, ".npy files have none", "Write one .npz with these keys.")
        return _of_npy(paths, labelled)
    if suffix in (".csv", ".parquet"):
        return read_columns(paths[0], columns, labelled)
    read = {".npz": _npz, ".pt": _pt, ".safetensors": _safetensors}[suffix]
    names = list(_keys(columns, labelled, str(paths[0])).values())
    try:
        content = read(paths[0], names)
    except MemoryError as error:
        raise InputError(f"{paths[0]} does not fit in memory.{_LARGER}") from error
    return _of_arrays(content, columns, labelled, str(paths[0]))


def _of_given(given: Any, columns: Columns, labelled: bool) -> Table:
    """Return a table of arrays in Python."""
    arrays = given if isinstance(given, tuple | list) else [given]
    if len(arrays) > 3:
        raise InputError(
            f"{len(arrays)} arrays were given: a table is X, (X, y) or (X, y, weight)."
        )
    if labelled:
        advice = "Give weights as (X, y, weight), and groups in a file."
        _refuse_names(columns, "arrays have none", advice)
    named = dict(zip(("X", "y", "weight"), arrays, strict=False))
    own = Columns(weight="weight") if len(arrays) == 3 else Columns()
    return _of_arrays(named, own, labelled, "the given table")


def _refuse_names(columns: Columns, why: str, advice: str) -> None:
    """Raise :class:`InputError` if groups or weights are named that the data cannot hold."""
    for argument, name in columns.others.items():
        if argument != "y":
            raise InputError(
                f"data.{argument} is {name!r}, the name of a key or column, but {why}. {advice}"
            )


def _instead_of(suffix: str) -> str:
    return next((f"\n{advice}" for kinds, advice in _INSTEAD.items() if suffix in kinds), "")


def name_of(given: Any) -> str:
    """Return a name for the data: the file's, or its folder's if the file is named by its split.

    >>> name_of("pets/train.npz"), name_of("digits_train.csv"), name_of("digits.npz")
    ('pets', 'digits', 'digits')
    """
    if given is None or _are_arrays(given):
        return "arrays"
    path = _paths(given)[0]
    name = _SPLIT.sub("", path.stem)
    return path.resolve().parent.name if name.lower() in _NAMELESS else name


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


def _keys(columns: Columns, labelled: bool, where: str) -> dict[str, str]:
    """Return the keys to read, by argument: of the features, the labels and so on."""
    x = "X" if columns.x is None else columns.x
    if not isinstance(x, str):
        raise InputError(f"{where}: x must be one key, not {list(x)!r}.")
    return {"x": x, **(columns.others if labelled else {})}


def _of_arrays(arrays: Mapping[str, Any], columns: Columns, labelled: bool, where: str) -> Table:
    keys = _keys(columns, labelled, where)
    for argument, key in keys.items():
        if key not in arrays:
            raise InputError(
                f"{where} has no {key!r}: it has {few(arrays, 10) or 'nothing'}.\nSay which with "
                f"--data.{argument} KEY."
            )
    given = arrays[keys["x"]]
    x, shape = as_features(given, f"{where}: {keys['x']!r}")
    names = next((arrays[key] for key in CLASSES if key in arrays), None)
    return Table(
        x,
        labels(arrays[keys["y"]], f"{where}: {keys['y']!r}") if "y" in keys else None,
        labels(arrays[keys["groups"]], f"{where}: {keys['groups']!r}", "groups")
        if "groups" in keys
        else None,
        None if names is None else [str(name) for name in np.asarray(names).tolist()],
        where,
        [str(name) for name in given.columns] if hasattr(given, "columns") else None,  # of pandas
        shape=shape,
        backbone=_backbone(arrays.get(BACKBONE), where),
        weight=weights(arrays[keys["weight"]], f"{where}: {keys['weight']!r}")
        if "weight" in keys
        else None,
    )


def _backbone(given: Any, where: str) -> Backbone | None:
    """Return the description of a backbone; None for an array of another meaning."""
    text = str(given) if isinstance(given, np.ndarray) and given.ndim == 0 else ""
    return Backbone.read(text, where) if text.startswith("{") else None


# ---- one function per kind of file: what it has under the names, and the names of classes


def _npz(path: Path, names: Sequence[str]) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = [key for key in (*names, *CLASSES, BACKBONE) if key in archive.files]
            found = dict.fromkeys(archive.files)
            return found | {key: _loaded(archive, key, path) for key in wanted}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"{path} is no whole .npz file: {first_line(error)}.") from error


def _loaded(archive: Any, key: str, path: Path) -> Array:
    _check_claim(archive.zip, f"{key}.npy", path)
    try:
        return np.asarray(archive[key])
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise InputError(
            f"{path}: {key!r} is an array of objects, which is a pickle: refused, nothing of it "
            "was run.\nSave numbers, or strings as np.array(names, dtype=str)."
        ) from error


def _check_claim(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Raise :class:`InputError` if an array is missing or would not fit in memory."""
    from numpy.lib import format as npy

    if name not in archive.namelist():
        return  # no array: bytes as they are
    with archive.open(name) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    claimed, there = math.prod(shape) * dtype.itemsize, archive.getinfo(name).file_size
    if not dtype.hasobject and claimed > there:
        raise InputError(
            f"{path} is damaged: {name} should hold {claimed} bytes, and holds {there}. Save it "
            "again."
        )
    if there > (free := psutil.virtual_memory().available):
        raise InputError(
            f"{path}: {name} needs {there / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.{_LARGER}"
        )


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
    safe = needed("safetensors", path)
    try:
        with safe.safe_open(str(path), framework="pt") as file:
            keys = set(file.keys())
            return {key: file.get_tensor(key) if key in names else None for key in keys}
    except Exception as error:  # its own kinds
        raise InputError(f"{path} is no whole .safetensors file: {first_line(error)}.") from error


# ---- .npy, which may be larger than memory


def _of_npy(paths: Sequence[Path], labelled: bool) -> Table:
    if labelled and len(paths) < 2:
        raise InputError(
            f"{paths[0]} has features alone: give it with its labels, "
            f"'[{paths[0]},{paths[0].stem}_y.npy]'."
        )
    x = _mapped(paths[0])
    last = x.ndim == 4 and is_channels_last(x.shape[1:], str(paths[0]))
    if last and x.nbytes > _COPIED:
        raise InputError(
            f"{paths[0]} has images (height, width, channels), {x.shape[1:]}, and is read from the "
            "file.\nWrite them anew, channels first: "
            "np.save('X.npy', np.ascontiguousarray(X.transpose(0, 3, 1, 2)))."
        )
    stays = x.dtype in _AS_THEY_ARE and x.dtype.isnative and not last
    flat, shape = as_features(torch.from_numpy(x) if stays else x, str(paths[0]))
    y = labels(_mapped(paths[1]), str(paths[1])) if labelled else None
    return Table(flat, y, where=str(paths[0]), mapped=_pager(x) if stays else None, shape=shape)


def _mapped(path: Path) -> Array:
    try:
        # c: private, as torch wants memory to write to; what is not written stays in the file
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
    """Return a function that advises the system on how a mapped array is read."""
    owner: Any = getattr(x, "_mmap", None)
    state: list[bool | None] = [None]

    def paging(in_order: bool) -> None:
        if owner is not None and state[0] is not in_order and hasattr(mmap, "MADV_RANDOM"):
            owner.madvise(mmap.MADV_SEQUENTIAL if in_order else mmap.MADV_RANDOM)
            state[0] = in_order

    return paging

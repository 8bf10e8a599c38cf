"""Data modules over tables of your own: files, arrays in Python, or any torch Dataset."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor

from onelayer.core.checks import check_among, check_positive, check_whole, is_number
from onelayer.core.errors import InputError
from onelayer.data.augment import Augment
from onelayer.data.features import (
    Features,
    RawFeatures,
    Standard,
    Statistics,
    features,
    measure,
    no_statistics,
)
from onelayer.data.naming import check_classes, check_distinct, few, match, warn_of_similar
from onelayer.data.pictures import PictureLoader, find_images
from onelayer.data.read import Labelled
from onelayer.data.read.formats import SUFFIXES, read_table
from onelayer.data.resident import ResidentDataModule
from onelayer.data.rows import RowLoader, check_finite, check_width, finite_chunks
from onelayer.data.split import Split, stratified
from onelayer.data.table import Array, Columns, Table, warn_of_counters

STANDARDS = ("feature", "none", "unit")
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_PURPOSES = {"train": "train on", "val": "validate on", "test": "test on", "predict": "classify"}


class TableDataModule(ResidentDataModule):
    """Tables of features and labels, standardised, in memory or mapped.

    The base of :class:`~onelayer.data.arrays.ArraysDataModule` and
    :class:`~onelayer.data.dataset.DatasetDataModule`. A table is read when it is first needed.

    Args:
        readers: how to read each table that there is, by train, val and test.
        name: what the data are called.
        val_size: rows, or their share, that are cut off train where there is no val.
        standardise: feature, none or unit.
        classes: names of the classes; a label that is a whole number is then a place among them.
        batch_size: rows of an update.
        seed: of the order of the batches, and of the validation split.
        max_memory: gigabytes that features of an .npy may take in memory.
        predict: what is to be classified: a table, or image files and folders.
        columns: what is called what in that table.
        augment: what is changed in the images of the training batches.
    """

    decisive = ("batch_size", "seed", "standardise", "val_size", "rows")
    locations: tuple[str, ...] = ("train", "val", "test", "predict", "max_memory")
    """The arguments that say where data lie, and change no figure."""

    def __init__(
        self,
        readers: Mapping[str, Callable[[], Table]],
        name: str,
        val_size: float,
        standardise: Standard,
        classes: Sequence[str] | None,
        batch_size: int,
        seed: int,
        max_memory: float = 1.0,
        predict: Any = None,
        columns: Columns | None = None,
        augment: Augment = Augment(),  # noqa: B008 - it is frozen
    ) -> None:
        super().__init__(cast(Any, None), {}, batch_size, seed, augment)
        check_among("standardise", standardise, STANDARDS)
        check_positive("max_memory", max_memory)
        _check_val_size(val_size)
        self.readers, self._name = dict(readers), name
        self.predicted = [predict] if isinstance(predict, str) else predict
        if predict is not None:
            self.readers["predict"] = partial(read_table, predict, columns or Columns(), False)
        self.val_size, self.standardise, self.max_memory = val_size, standardise, max_memory
        self._given = None if classes is None else [str(name) for name in classes]
        self._classes: _Classes | None = None
        self._columns: list[str] | None = None  # names of the features, in the network's order
        self._knows_columns = False  # whether these are those of the training table or a checkpoint
        self._whose = "the training table"  # columns they are
        self._tables: dict[str, Table] = {}  # those that are in memory now
        self._hashes: dict[str, NDArray[np.uint64]] = {}  # of the rows of each table
        self._shape: tuple[int, ...] = ()
        self._rows: dict[Split, Tensor] = {}  # which rows of its table a split is
        self._codes: dict[Split, Tensor] = {}  # its labels as places among the classes
        self._checked = False
        self._digest = ""

    def __str__(self) -> str:
        there = [split for split in SPLITS if self._table_of(split) in self.readers]
        return f"{type(self).__name__}({self.name}: {', '.join(there)})"

    @property
    def name(self) -> str:  # type: ignore[override]
        """What the data are called."""
        return self._name

    @property
    def classes(self) -> Sequence[str]:
        """What the labels 0, 1, … mean."""
        return self._settled().names

    @property
    def columns(self) -> list[str] | None:
        """Names of the features in the network's order; None of tables without."""
        if not self._knows_columns and "train" in self.readers:
            self.table("train")
        return self._columns

    @property
    def knows_classes(self) -> bool:
        """Whether the classes are known, or can be: else they are those of a checkpoint."""
        return self._classes is not None or "train" in self.readers

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: colours, height and width of images, else (d,)."""
        if not self._shape:
            table = self.table("train")
            self._shape = table.shape or (table.x.shape[1],)
        return self._shape

    @property
    def rows(self) -> str:
        """A checksum of which rows train and validate, and of their features and labels."""
        if not self._digest:
            found = 0
            for split in (split for split in SPLITS[:2] if self.size(split)):
                rows = self.rows_of(split).numpy()
                hashes = self._hashes_of(self._table_of(split))[rows]
                for part in (self.labels(split).numpy(), rows, hashes):
                    found = zlib.crc32(part.tobytes(), found)
            self._digest = f"{found:08x}"
        return self._digest

    # ---- tables and their splits

    def table(self, name: str) -> Table:
        """Return a table, read now if it is not in memory.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        if name not in self._tables:
            if name not in self.readers:
                raise InputError(
                    f"{type(self).__name__} has nothing to {_PURPOSES[name]}: set data.{name}."
                )
            table = self.readers[name]()
            if name == "train" and not self._knows_columns:
                check_distinct(table.columns or [], "columns", table.where)
                warn_of_similar(table.columns or [], "columns", table.where)
                self._take_columns(table.columns, table.where)
            self._tables[name] = table.ordered(self._columns, self._whose)
        return self._tables[name]

    def _take_columns(self, columns: Sequence[str] | None, whose: str) -> None:
        """Order the columns of every table as these are, matched by name."""
        self._knows_columns = True
        if columns is None or list(columns) == self._columns:
            return
        self._columns, self._whose = list(columns), whose
        self._tables = {name: t.ordered(columns, whose) for name, t in self._tables.items()}
        self._hashes.clear()
        self._digest = ""
        self._forget_tensors()

    def _table_of(self, split: str) -> str:
        return "train" if split == "val" and "val" not in self.readers else split

    def size(self, split: Split) -> int:
        """Return how many rows a split has, for which its table may have to be read."""
        return len(self.rows_of(split)) if self._table_of(split) in self.readers else 0

    def rows_of(self, split: Split) -> Tensor:
        """Return which rows of its table a split is, ascending, int64 (n,)."""
        if split not in self._rows:
            if split == "test" or "val" in self.readers:
                self._rows[split] = torch.arange(len(self.table(split)))
            else:
                self._cut()
        return self._rows[split]

    def _cut(self) -> None:
        """Cut the validation split off the training table."""
        table = self.table("train")
        n = len(table)
        count = self.val_size if isinstance(self.val_size, int) else round(self.val_size * n)
        if count >= n:
            raise InputError(f"val_size must be less than the {n} rows of data.train, not {count}.")
        y = np.unique(_labels(table), return_inverse=True)[1]
        groups = table.groups
        if groups is not None:
            groups = np.unique(groups, return_inverse=True)[1]
        train, val = stratified(y, count, self.seed, groups)
        self._rows["train"], self._rows["val"] = torch.from_numpy(train), torch.from_numpy(val)

    # ---- classes

    def _settled(self) -> _Classes:
        """Learn the classes from the training and validation tables, unless they are known."""
        if self._classes is None:
            train = self.table("train")
            tables = [train, *([self.table("val")] if "val" in self.readers else [])]
            values = np.unique(np.concatenate([np.unique(_labels(table)) for table in tables]))
            names = self._given or train.classes
            if len(np.unique(_labels(train))) < 2:
                raise InputError(
                    f"{train.where} has one class only, {few(values)}: at least two are needed."
                )
            self._classes = _Classes(names or [str(v) for v in values.tolist()], names is not None)
            check_classes(self._classes.names, "data.classes" if self._given else train.where)
        return self._classes

    def labels(self, split: Split) -> Tensor:
        """Return a split's labels as places among the classes, int64 (n,)."""
        if split not in self._codes:
            table, rows = self.table(self._table_of(split)), self.rows_of(split)
            self._codes[split] = self._settled().places(table)[rows]
        return self._codes[split]

    def _check_known(self, split: Split) -> None:
        """Raise :class:`InputError` for a class that no training row has."""
        unknown = ~torch.isin(self.labels(split), self.labels("train").unique())
        if unknown.any():
            at = int(unknown.nonzero()[0])
            table = self.table(self._table_of(split))
            raise InputError(
                f"{table.where}: row {int(self.rows_of(split)[at]) + table.first_row} is of class "
                f"{self.classes[int(self.labels(split)[at])]!r}, which only the {split} split has: "
                "no training row.\nAdd rows of it to data.train, or leave these out."
            )

    # ---- what is checked before a training

    def setup(self, stage: str) -> None:
        """Read what ``stage`` needs, and refuse what would train silently wrong.

        Raises:
            InputError: naming file, row and column.
        """
        self._begun = False
        if stage == "fit":
            self.check_batch_size()
            self._check_all()
            self.augment.check(self.shape)
        elif stage == "predict":
            find_images(self.predicted) if self._are_images() else self.table("predict")
        elif stage == "test" and "test" not in self.readers:
            self.table("test")  # says what is missing
        elif stage == "validate" and "val" not in self.readers:
            self.table("train")
            if not self.size("val"):
                raise InputError("there is no split to validate on: val_size is 0.")

    def verify_test(self) -> None:
        """Refuse now, not after the training, a test split that could not be measured."""
        self._check_all()

    def _check_all(self) -> None:
        """Check every split that there is, once, and warn of rows that two of them share."""
        if self._checked:
            return
        there = [split for split in SPLITS if self.size(split)]
        d = self.table("train").x.shape[1]
        for name in dict.fromkeys(map(self._table_of, there)):
            table = self.table(name)
            check_width(table, d, f"{self.table('train').where} has")
            self._hashes_of(name)
        warn_of_counters(self.table("train"))
        self._settled()
        for split in there[1:]:
            self._check_known(split)
        _warn_of_shared(
            "row", {s: self._hashes_of(self._table_of(s))[self.rows_of(s)] for s in there}
        )
        groups = {s: self._groups_of(s) for s in there}
        _warn_of_shared("group", {s: np.unique(g) for s, g in groups.items() if g is not None})
        self._tables.pop("test", None)  # read again when it is measured
        self._checked = True

    def _hashes_of(self, name: str) -> NDArray[np.uint64]:
        """Return a hash of each row of a table, whose numbers are checked to be finite."""
        if name not in self._hashes:
            self._hashes[name] = _hashes(finite_chunks(self.table(name)))
        return self._hashes[name]

    def _groups_of(self, split: Split) -> NDArray[Any] | None:
        """Return the groups of a split's rows, as text; None without."""
        groups = self.table(self._table_of(split)).groups
        return None if groups is None else groups[self.rows_of(split).numpy()].astype(str)

    # ---- features

    def labelled(self, split: Split) -> Labelled | None:
        """Return a split as it was given, copied where it is some of its table's rows."""
        if not self.size(split):
            return None
        table, rows = self.table(self._table_of(split)), self.rows_of(split)
        x = table.x if len(rows) == len(table) else table.x[rows]
        return Labelled(x, self.labels(split))

    def _is_mapped(self, split: Split) -> bool:
        """Whether a split stays in its file, as it would take more than max_memory."""
        table = self.table(self._table_of(split))
        needed = table.x.numel() * max(table.x.itemsize, torch.float32.itemsize)
        return table.mapped is not None and needed > self.max_memory * 1e9

    def _standardised(
        self, split: Split, device: torch.device, dtype: torch.dtype
    ) -> tuple[Features, Tensor] | None:
        if not self.size(split):
            return None
        name, unit = self._table_of(split), self.standardise == "unit"
        table, y = self.table(name), self.labels(split)
        check_width(table, len(self.statistics.mean), "the network was trained on")
        if not self._checked:
            check_finite(table)
        X: Features
        if self._is_mapped(split):
            rows = None if self.size(split) == len(table) else self.rows_of(split)
            X = RawFeatures(table.x, self.statistics, dtype, unit, rows, table.mapped)
            X.finite = True
        else:
            given = self.labelled(split)
            assert given is not None
            X = features(given.x.to(device), self.statistics, dtype, unit)
        made = {split, *(s for s, _ in self._tensors)}
        if all(s in made for s in SPLITS if self._table_of(s) == name and self.size(s)):
            _ = self.shape if name == "train" else ()
            self._tables.pop(name, None)  # all of it is standardised
        return X, y

    def _measure(self) -> Statistics:
        table = self.table("train")
        if self.standardise != "feature":
            return no_statistics(table.x.shape[1])
        rows = None if self.size("train") == len(table) else self.rows_of("train")
        return measure(table.x, rows, table.mapped)

    def predict_dataloader(self) -> RowLoader | PictureLoader:
        """Return batches of what is to be classified: X (n, d), or with the names of images."""
        self._take_from_network()
        unit = self.standardise == "unit"
        if self._are_images():
            return PictureLoader(find_images(self.predicted), self.statistics, self._shape, unit)
        return RowLoader(self.table("predict"), self.statistics, unit)

    def _are_images(self) -> bool:
        """Whether image files or folders are to be classified, not a table."""
        first = self.predicted[0] if self.predicted else ""
        return isinstance(first, str) and not first.lower().endswith(SUFFIXES) and bool(first)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return what predictions need, and what the run must be resumed with."""
        settled = self._settled()
        return {
            **super().state_dict(),
            "classes": list(settled.names),
            "places": settled.given,
            "shape": list(self.shape),
            "columns": self.columns,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the checkpoint's statistics and names, in its order.

        Raises:
            InputError: as :meth:`ResidentDataModule.load_state_dict`, and for other names of
                columns or, where a run is resumed, of classes.
        """
        for key, kind in (("classes", list), ("places", bool), ("shape", list), ("dataset", str)):
            if not isinstance(state, dict) or not isinstance(state.get(key), kind):
                raise InputError(f"the checkpoint's data have no {key}: it is damaged.")
        names, columns = state["classes"], state.get("columns")
        if len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise InputError(f"the checkpoint's classes are {few(names)}: it is damaged.")
        if columns is not None and not all(isinstance(name, str) for name in columns):
            raise InputError(f"the checkpoint's columns are {few(columns)}: it is damaged.")
        self._name = state["dataset"]  # the rows' checksum tells other data, not a file's name
        self._take_columns(columns, "the checkpoint")
        if self._runs(TrainerFn.FITTING):
            match(self.classes, names, "classes", "the training data", "the checkpoint")
        if self._classes is None or list(self.classes) != names:
            self._classes = _Classes(names, state["places"])
            self._codes.clear()
            self._digest = ""
            self._forget_tensors()
        if not self._runs(TrainerFn.FITTING):
            self._classes.given, self._shape = state["places"], tuple(state["shape"])
            if self.standardise != (kept := state.get("arguments", {}).get("standardise")):
                check_among("the checkpoint's standardise", kept, STANDARDS)
                self.standardise = kept
        super().load_state_dict(state)


class _Classes:
    """The names of the classes, and which place a label has among them.

    Args:
        names: of the classes.
        given: whether they were given: then a label that is a whole number is a place.
    """

    def __init__(self, names: Sequence[str], given: bool) -> None:
        self.names, self.given = list(names), given

    def places(self, table: Table) -> Tensor:
        """Return a table's labels as places among the names, int64 (n,).

        Raises:
            InputError: a label that is none of them; naming its row.
        """
        y = _labels(table)
        known = {name: k for k, name in enumerate(self.names)}
        values, inverse = np.unique(y, return_inverse=True)
        codes = [self._place(value, table.classes, known) for value in values.tolist()]
        if -1 in codes:
            row = int(np.flatnonzero(inverse == codes.index(-1))[0])
            raise self._unknown(table, row, y[row])
        return torch.from_numpy(np.array(codes, dtype=np.int64)[inverse])

    def _place(self, value: int | str, own: list[str] | None, known: Mapping[str, int]) -> int:
        """Return a label's index: by its table's own name for it, if it has one; -1 for none."""
        if isinstance(value, int) and own is not None:
            return known.get(own[value], -1) if 0 <= value < len(own) else -1
        if isinstance(value, int) and self.given:
            return value if 0 <= value < len(self.names) else -1
        return known.get(str(value), -1)

    def _unknown(self, table: Table, row: int, label: Any) -> InputError:
        own, legal = table.classes, ""
        numbered = isinstance(label, int | np.integer)
        if numbered and own is not None:
            inside = 0 <= label < len(own)
            label = own[label] if inside else f"{label} (of {len(own)} classes)"
        elif numbered and self.given:
            legal = f"0 to {len(self.names) - 1}, of "
        return InputError(
            f"{table.where}: row {row + table.first_row} has the label {str(label)[:60]!r}, which "
            f"is no class of the training data.\nTheirs are {legal}{few(self.names)}."
        )


# ---- checks


def _labels(table: Table) -> Array:
    if table.y is None:
        raise InputError(f"{table.where} has no labels, which are needed here.")
    return table.y


def _check_val_size(value: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        check_whole("val_size", value, 0)
    elif not is_number(value) or not 0 <= value < 1:
        raise InputError(
            f"val_size must be a whole number of rows, or a share from 0 to 1, not {value!r}."
        )


def _hashes(chunks: Iterable[Tensor]) -> NDArray[np.uint64]:
    """A number of 64 bits for each row (n,), equal for equal rows."""
    found = []
    for chunk in chunks:
        content = chunk.numpy() if chunk.dtype == torch.uint8 else chunk.float().numpy() + 0.0
        octets = np.ascontiguousarray(content).view(np.uint8).reshape(len(chunk), -1)
        blank = -octets.shape[1] % 8
        words = np.pad(octets, ((0, 0), (0, blank))).view(np.uint64)
        words = (words ^ (words >> np.uint64(29))) * _factors(words.shape[1])
        found.append((words ^ (words >> np.uint64(32))).sum(1, dtype=np.uint64))
    return np.concatenate(found)


def _factors(count: int) -> NDArray[np.uint64]:
    """Odd numbers, one a column."""
    from onelayer.data.random import words

    return words(count, 0, 3) | np.uint64(1)


def _warn_of_shared(what: str, found: Mapping[str, NDArray[Any]]) -> None:
    """Warn about rows, or groups, that two splits share."""
    for one, other in combinations(found, 2):
        shared = int(np.isin(found[other], found[one]).sum())
        if shared:
            warnings.warn(
                f"{shared} {what}{' is' if shared == 1 else 's are'} in the {other} split and also "
                f"in the {one} split: its accuracy is optimistic.",
                stacklevel=2,
            )

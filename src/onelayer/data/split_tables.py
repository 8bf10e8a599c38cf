"""Tables by split: their names matched, their rows cut into splits, everything checked once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onelayer.core.checks import check_whole, is_number
from onelayer.core.errors import InputError
from onelayer.data.backbone import Backbone
from onelayer.data.classes import Classes
from onelayer.data.duplicates import hash_rows, warn_of_shared
from onelayer.data.naming import check_classes, check_distinct, few, warn_of_similar
from onelayer.data.split import Split, stratified
from onelayer.data.table import Table, warn_of_counters

SPLITS: tuple[Split, ...] = ("train", "val", "test")
_PURPOSES = {"train": "train on", "val": "validate on", "test": "test on", "predict": "classify"}


class SplitTables:
    """Tables to train, validate and test on, which are read when they are first needed.

    Columns and classes of all tables are those of the training table, or of a checkpoint, matched
    by name.

    Args:
        readers: functions that read the tables, by train, val, test and predict.
        val_size: rows, or their share, to cut off train if there is no val.
        seed: seed of that choice.
        classes: names of the classes; a label that is a whole number is then an index of them.
    """

    verified = False
    """Whether the readers verify what they read by a digest: then no sample is checked again."""

    def __init__(
        self,
        readers: Mapping[str, Callable[[], Table]],
        val_size: float,
        seed: int,
        classes: Sequence[str] | None = None,
    ) -> None:
        _check_val_size(val_size)
        check_whole("seed", seed, 0)
        self.readers, self.val_size, self.seed = dict(readers), val_size, seed
        self._given = None if classes is None else [str(name) for name in classes]
        self._forget()

    def _forget(self) -> None:
        """Forget all that was read."""
        self._classes: Classes | None = None
        self._columns: list[str] | None = None  # names of the features, in the network's order
        self._whose = ""  # whose columns these are; "" before they are known
        self._shape: tuple[int, ...] = ()
        self._kind: str | None = None  # of the features trained on: bytes, pixels or numbers
        self._dtype: str | None = None  # of the features trained on, such as float32
        self._backbone: Backbone | None = None  # that made the features trained on, if known
        self._tables: dict[str, Table] = {}  # those in memory now
        self._hashes: dict[str, NDArray[np.uint64]] = {}  # of the rows of each table
        self._weights: dict[str, NDArray[Any] | None] = {}  # of the samples of each table
        self._rows: dict[Split, Tensor] = {}  # index of each row of a split in its table
        self._codes: dict[Split, Tensor] = {}  # labels as indices of the classes
        self._checked, self._digest = self.verified, ""

    def _changed(self) -> None:
        """Drop what was made of features and labels, as their order has changed."""
        self._hashes.clear()
        self._codes.clear()
        self._digest = ""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the logits."""
        return self._settled().names

    @property
    def columns(self) -> list[str] | None:
        """Names of the features in the network's order; None for tables without."""
        if not self._whose and "train" in self.readers:
            self.table("train")
        return self._columns

    @property
    def knows_classes(self) -> bool:
        """Return whether the classes are known, or can be: else they are those of a checkpoint."""
        return self._classes is not None or "train" in self.readers

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: colours, height and width of images, else (d,)."""
        if not self._shape:
            self.table("train")
        return self._shape

    @property
    def rows(self) -> str:
        """A checksum of the training and validation rows, of their features and labels."""
        if not self._digest:
            found = 0
            for split in (split for split in SPLITS[:2] if self.size(split)):
                rows = self.rows_of(split).numpy()
                hashes = self._hashes_of(self._table_of(split))[rows]
                weight = self.sample_weights(split)
                parts = [self.labels(split).numpy(), rows, hashes]
                parts += [] if weight is None else [weight.numpy()]
                for part in parts:
                    found = zlib.crc32(part.tobytes(), found)
            self._digest = f"{found:08x}"
        return self._digest

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
            if name == "train":
                self._learn_from(table)
            self._check_backbone(table)
            self._weights[name] = table.weight
            self._tables[name] = table.ordered(self._columns, self._whose)
        return self._tables[name]

    def _check_backbone(self, table: Table) -> None:
        """Refuse features of another backbone than those trained on."""
        own, there = self._backbone, table.backbone
        if own is not None and there is not None and own != there:
            raise InputError(
                f"{table.where} has features of the backbone {there.words}, and the network is "
                f"trained on those of {own.words}.\nMake the features with one backbone: "
                "onelayer features."
            )

    def _learn_from(self, table: Table) -> None:
        """Take the columns, the shape and the kind of features from the training table."""
        if not self._whose:
            check_distinct(table.columns or [], "columns", table.where)
            warn_of_similar(table.columns or [], "columns", table.where)
            self._take_columns(table.columns, table.where)
        self._shape = table.shape or (table.x.shape[1],)
        self._backbone = self._backbone or table.backbone
        self._dtype = self._dtype or str(table.x.dtype).removeprefix("torch.")
        if self._kind is None:
            self._kind = "bytes" if table.x.dtype == torch.uint8 else "numbers"
            if self._kind == "numbers" and len(table.shape) == 3 and _from_0_to_1(table):
                self._kind = "pixels"

    def _take_columns(self, columns: Sequence[str] | None, whose: str) -> None:
        """Order the columns of every table as these are, matched by name."""
        self._whose = whose
        if columns is not None and list(columns) != self._columns:
            self._columns = list(columns)
            self._tables = {name: t.ordered(columns, whose) for name, t in self._tables.items()}
            self._changed()

    def _take_classes(self, classes: Classes) -> None:
        """Replace the classes by those of a checkpoint, in its order."""
        if self._classes is None or self._classes.names != classes.names:
            self._changed()
        self._classes = classes

    def _check_fits(self, table: Table, d: int) -> None:
        """Refuse a table of another width or scale than the network was trained on."""
        table.check_width(d, "the network was trained on")
        other = table.x.dtype != torch.uint8 and self._kind == "bytes"
        if other and not _from_0_to_1(table):
            raise InputError(
                f"{table.where} holds {table.x.dtype}: the network was trained on bytes, uint8 "
                f"(n, {d}), of images the red plane first. Floats must be from 0 to 1."
            )

    def _table_of(self, split: str) -> str:
        return "train" if split == "val" and "val" not in self.readers else split

    def size(self, split: Split) -> int:
        """Return the number of rows of a split, which may read its table."""
        return len(self.rows_of(split)) if self._table_of(split) in self.readers else 0

    def rows_of(self, split: Split) -> Tensor:
        """Return the indices of a split's rows in its table, ascending, int64 (n,)."""
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
        y = np.unique(table.labels, return_inverse=True)[1]
        groups = table.groups
        if groups is not None:
            groups = np.unique(groups, return_inverse=True)[1]
        train, val = stratified(y, count, self.seed, groups)
        self._rows["train"], self._rows["val"] = torch.from_numpy(train), torch.from_numpy(val)

    # ---- classes

    def _settled(self) -> Classes:
        """Learn the classes from the training and validation tables, unless they are known."""
        if self._classes is None:
            train = self.table("train")
            tables = [train, *([self.table("val")] if "val" in self.readers else [])]
            values = np.unique(np.concatenate([np.unique(table.labels) for table in tables]))
            names = self._given or train.classes
            if len(np.unique(train.labels)) < 2:
                raise InputError(
                    f"{train.where} has one class only, {few(values)}: at least two are needed."
                )
            self._classes = Classes(names or [str(v) for v in values.tolist()], names is not None)
            check_classes(self._classes.names, "data.classes" if self._given else train.where)
        return self._classes

    def labels(self, split: Split) -> Tensor:
        """Return a split's labels as indices of the classes, int64 (n,)."""
        if split not in self._codes:
            table, rows = self.table(self._table_of(split)), self.rows_of(split)
            self._codes[split] = self._settled().codes(table)[rows]
        return self._codes[split]

    def sample_weights(self, split: Split) -> Tensor | None:
        """Return the weights of a split's samples, float32 (n,); None without.

        They are scaled so that those of the training split have mean 1.
        """
        own = self._weights_of(self._table_of(split))
        if own is None:
            return None
        train = self._weights_of("train") if "train" in self.readers else None
        scale = 1.0 if train is None else float(train[self.rows_of("train").numpy()].mean())
        if not scale > 0:
            where = self.table("train").where
            raise InputError(
                f"{where}: all weights of the training split are 0: nothing is learned. Give a "
                "sample a weight above 0."
            )
        return torch.from_numpy(own[self.rows_of(split).numpy()] / scale).float()

    def _weights_of(self, name: str) -> NDArray[Any] | None:
        """Return the weights of a table, which were kept when it was read."""
        if name not in self._weights:
            self.table(name)
        return self._weights[name]

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

    # ---- checks

    def _check_all(self) -> None:
        """Check every split that there is, once, and warn of rows that two of them share."""
        if self._checked:
            return
        there = [split for split in SPLITS if self.size(split)]
        d = self.table("train").x.shape[1]
        for name in dict.fromkeys(map(self._table_of, there)):
            self.table(name).check_width(d, f"{self.table('train').where} has")
            self._hashes_of(name)
        warn_of_counters(self.table("train"))
        self._settled()
        for split in there[1:]:
            self._check_known(split)
        warn_of_shared(
            "row", {s: self._hashes_of(self._table_of(s))[self.rows_of(s)] for s in there}
        )
        groups = {s: self._groups_of(s) for s in there}
        warn_of_shared("group", {s: np.unique(g) for s, g in groups.items() if g is not None})
        self._tables.pop("test", None)  # read again when it is measured
        self._checked = True

    def _hashes_of(self, name: str) -> NDArray[np.uint64]:
        """Return a hash of each row of a table, whose numbers are checked to be finite."""
        if name not in self._hashes:
            self._hashes[name] = hash_rows(self.table(name))
        return self._hashes[name]

    def _groups_of(self, split: Split) -> NDArray[Any] | None:
        """Return the groups of a split's rows, as text; None without."""
        groups = self.table(self._table_of(split)).groups
        return None if groups is None else groups[self.rows_of(split).numpy()].astype(str)


def _check_val_size(value: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        check_whole("val_size", value, 0)
    elif not is_number(value) or not 0 <= value < 1:
        raise InputError(
            f"val_size must be a whole number of rows, or a share from 0 to 1, not {value!r}."
        )


def _from_0_to_1(table: Table) -> bool:
    low, high = table.bounds()
    return low >= 0 and high <= 1

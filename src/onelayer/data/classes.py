"""Classes: their names, and the index of each label among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.naming import few
from onelayer.data.table import Table


class Classes:
    """Names of the classes that a network tells apart.

    Args:
        names: names in the order of the logits.
        given: whether the names were given. A label that is a whole number is then an index.
    """

    def __init__(self, names: Sequence[str], given: bool) -> None:
        self.names, self.given = list(names), given

    def codes(self, table: Table) -> Tensor:
        """Return a table's labels as indices of the names, int64 (n,).

        Raises:
            InputError: a label is none of them; naming its row.
        """
        known = {name: k for k, name in enumerate(self.names)}
        values, inverse = np.unique(table.labels, return_inverse=True)
        codes = [self._code(value, table.classes, known) for value in values.tolist()]
        if -1 in codes:
            raise self._unknown(table, int(np.flatnonzero(inverse == codes.index(-1))[0]))
        return torch.from_numpy(np.array(codes, dtype=np.int64)[inverse])

    def _code(self, value: int | str, own: Sequence[str] | None, known: Mapping[str, int]) -> int:
        """Return a label's index: by its table's own name for it, if it has one; -1 for none."""
        if isinstance(value, int) and own is not None:
            return known.get(own[value], -1) if 0 <= value < len(own) else -1
        if isinstance(value, int) and self.given:
            return value if 0 <= value < len(self.names) else -1
        return known.get(str(value), -1)

    def _unknown(self, table: Table, row: int) -> InputError:
        label: Any = table.labels[row]
        own, legal = table.classes, ""
        numbered = isinstance(label, int | np.integer)
        if numbered and own is not None:
            label = own[label] if 0 <= label < len(own) else f"{label} (of {len(own)} classes)"
        elif numbered and self.given:
            legal = f"0 to {len(self.names) - 1}, of "
        return InputError(
            f"{table.where}: row {row + table.first_row} has the label {str(label)[:60]!r}, which "
            f"is no class of the training data.\nTheirs are {legal}{few(self.names)}."
        )

"""Rows that come more than once, found by a hash of each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onelayer.data.random import words
from onelayer.data.table import Table


def hash_rows(table: Table) -> NDArray[np.uint64]:
    """Return a hash of each row's features (n,), the same for equal rows.

    Raises:
        InputError: a feature is not finite.
    """
    found = []
    for chunk in table.chunks():
        content = chunk.numpy() if chunk.dtype == torch.uint8 else chunk.float().numpy() + 0.0
        octets = np.ascontiguousarray(content).view(np.uint8).reshape(len(chunk), -1)
        blank = -octets.shape[1] % 8
        mixed = np.pad(octets, ((0, 0), (0, blank))).view(np.uint64)
        factors = words(mixed.shape[1], 0, 3) | np.uint64(1)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * factors
        found.append((mixed ^ (mixed >> np.uint64(32))).sum(1, dtype=np.uint64))
    return np.concatenate(found)


def warn_of_shared(what: str, found: Mapping[str, NDArray[Any]]) -> None:
    """Warn about rows, or groups, that two splits share."""
    for one, other in combinations(found, 2):
        shared = int(np.isin(found[other], found[one]).sum())
        if shared:
            warnings.warn(
                f"{shared} {what}{' is' if shared == 1 else 's are'} in the {other} split and also "
                f"in the {one} split: its accuracy is optimistic.",
                stacklevel=2,
            )

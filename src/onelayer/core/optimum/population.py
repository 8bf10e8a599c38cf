"""The members of a solve: their λ, their folds and their weights of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from onelayer.core.checks import LARGEST, check_weight, is_number
from onelayer.core.errors import InputError


class Population(NamedTuple):
    """Distinct weights of the samples (g, n), the row of each member (m,) and its fold (m,)."""

    weights: Tensor | None
    row: Tensor | None
    fold: Tensor


def population(
    y: Tensor, count: int, weight: Tensor | None, folds: Tensor | None, shared: bool
) -> Population:
    """Return the weights of all members: of ``count`` λ, of folds, or of the rows given."""
    device = y.device
    none = torch.full((count,), -1, device=device)
    if weight is not None:
        check_weight(weight, len(y))
        weight = weight.to(device, torch.float64)
    if folds is not None:
        if weight is not None and weight.ndim == 2:
            raise InputError(
                "weight has a row for each member, and folds make members, too. Give one of them, "
                "or a weight for each sample, (n,)."
            )
        check_folds(folds, y, shared)
        numbers = torch.arange(_number_of(folds, shared), device=device)
        weights = (folds.to(device) != numbers.unsqueeze(1)).double()
        fold = numbers.repeat_interleave(count)
        return Population(weights if weight is None else weights * weight, fold, fold)
    if weight is None:
        return Population(None, None, none)
    if weight.ndim == 1:
        return Population(weight.unsqueeze(0), torch.zeros_like(none), none)
    if count not in (1, len(weight)):
        raise InputError(
            f"weight has {len(weight)} rows, but l2 lists {count} λ. Give a row of weights for "
            "each λ, or one λ."
        )
    fold = none.new_full((len(weight),), -1)
    if shared:  # equal rows of one shard may differ in another
        return Population(weight, torch.arange(len(weight), device=device), fold)
    distinct, row = weight.unique(dim=0, return_inverse=True)
    return Population(distinct, row, fold)


def check_l2(l2: Sequence[float], repeated: bool = False) -> None:
    """Raise :class:`InputError` unless every λ has a certified minimum: all are above 0."""
    if not len(l2):
        raise InputError("l2 must list at least one λ > 0.")
    for value in l2:
        if is_number(value) and value == 0:
            raise InputError(
                "l2 must be > 0, not 0: without a penalty the weights of separable data grow "
                "without limit, and no gap can be certified. Use a small λ, such as 1e-6."
            )
        if not is_number(value) or not 0 < value <= LARGEST:
            raise InputError(f"l2 must be a number > 0 and at most {LARGEST:g}, not {value!r}.")
    if len(set(l2)) < len(l2) and not repeated:
        raise InputError(f"l2 must not repeat a value, not {list(l2)}.")


def check_folds(folds: Tensor, y: Tensor, shared: bool = False) -> None:
    """Raise :class:`InputError` unless each sample has a fold, of two or more: 0, 1, …."""
    if folds.shape != y.shape or folds.dtype != torch.int64 or bool((folds < 0).any()):
        raise InputError(f"folds must be whole numbers >= 0, one for each of {len(y)} samples.")
    if _number_of(folds, shared) < 2:
        raise InputError("folds must be 2 or more: a member learns from the other folds.")


def _number_of(folds: Tensor, shared: bool) -> int:
    last = folds.max()
    if shared:
        torch.distributed.all_reduce(last, torch.distributed.ReduceOp.MAX)
    return int(last) + 1

"""Bounds on the distance of linear networks to their minimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onelayer.core.errors import InputError, first_line
from onelayer.core.optimum.certificate import certify
from onelayer.core.optimum.data import Samples
from onelayer.data.adapter import augment_of
from onelayer.data.augment import Mirrored
from onelayer.data.features import Features, Joined
from onelayer.data.split import Split, Splits
from onelayer.training.module import OneLayer


def joined(data: Any, splits: Sequence[Split]) -> tuple[Features, Tensor]:
    """Return features and labels of the available splits, joined.

    Raises:
        InputError: none is available, or the data module has only loaders.
    """
    if not isinstance(data, Splits):
        raise InputError(f"{type(data).__name__} has no tensors(split)")
    pairs = [pair for split in splits if (pair := data.tensors(split)) is not None]
    if not pairs:
        raise InputError("the split is not available: pass --data.train")
    if len(pairs) == 1:
        return pairs[0]
    return Joined([X for X, _ in pairs]), torch.cat([y for _, y in pairs])


def learned(data: Any, splits: Sequence[Split]) -> tuple[Features, Tensor]:
    """Return the features and labels of training; with ``data.flip``, also of flipped images.

    The mean over both is the expected cost of training with flips.

    Raises:
        InputError: see :func:`joined`; or images are augmented in another way than by flips.
    """
    X, y = joined(data, splits)
    asked = augment_of(data).settings()
    if others := asked.keys() - {"flip"}:
        raise InputError(
            f"with data.{min(others - {'border'})} the cost has no fixed minimum; "
            "only data.flip has one"
        )
    if not asked:
        return X, y
    return Joined([X, Mirrored(X, data.shape)]), torch.cat([y, y])


def gaps(module: OneLayer, data: Any) -> tuple[Tensor, Tensor]:
    """Return cost and gap (m,) of linear networks over the splits they were trained on.

    Networks with λ = 0 and diverged ones have no certificate: NaN.
    """
    X, y = learned(data, module.learned_from)  # type: ignore[arg-type]
    some = ((module.l2 > 0) & module.finite_members()).nonzero().squeeze(1)
    result = torch.full((2, len(module.members)), torch.nan, dtype=torch.float64)
    if len(some):
        W, b = (p.detach()[some].to(X.device) for p in module.weights)
        samples = Samples(X, y.to(X.device), module.outputs)
        found = certify(samples, W, b, module.l2[some].to(X.device))
        result[:, some] = torch.stack([found.cost, found.gap]).cpu()
    return result[0], result[1]


def format_gaps(module: OneLayer, data: Any) -> str:
    """Return the distances to the minimum that ``onelayer test`` prints for linear networks."""
    where = " and ".join({"train": "training", "val": "validation"}[s] for s in module.learned_from)
    head = f"distance to the minimum, at most, over the {where} split"
    try:
        costs, gaps_ = (values.tolist() for values in gaps(module, data))
    except InputError as error:
        return f"{head}: unknown ({first_line(error)})"
    lines = [f"{'l2':>9} {'seed':>5} {'cost':>12} {'gap':>9}"]
    for (l2, seed, step), cost, gap in zip(module.members, costs, gaps_, strict=True):
        known = gap == gap  # no NaN
        none = "none of l2 = 0" if l2 == 0 else "diverged"
        figures = f"{cost:>12.6f} {gap:>9.1e}" if known else none
        when = "" if step is None else f"  after {step} updates"
        lines.append(f"{l2:>9.3g} {seed:>5} {figures}{when}")
    return "\n".join([f"{head}:", *lines])

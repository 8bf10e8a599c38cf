"""How far linear networks are from the optimum of what they learned from, at most."""

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
    """Features and labels of the splits that there are, laid end to end.

    Raises:
        InputError: there is none of them, or only loaders to have them from.
    """
    if not isinstance(data, Splits):
        raise InputError(f"{type(data).__name__} has no tensors(split)")
    pairs = [pair for split in splits if (pair := data.tensors(split)) is not None]
    if not pairs:
        raise InputError("that split is not at hand")
    if len(pairs) == 1:
        return pairs[0]
    return Joined([X for X, _ in pairs]), torch.cat([y for _, y in pairs])


def learned(data: Any, splits: Sequence[Split]) -> tuple[Features, Tensor]:
    """Features and labels that are learned from; with ``data.flip`` the mirror images come after.

    The mean over both is the cost that training with flips expects.

    Raises:
        InputError: as :func:`joined`, and for other changes of images, whose cost is no sum.
    """
    X, y = joined(data, splits)
    asked = augment_of(data).settings()
    if others := asked.keys() - {"flip"}:
        raise InputError(
            f"with data.{min(others - {'border'})} the images that are learned from are without "
            "number, and so their least cost is not known: only data.flip is taken."
        )
    if not asked:
        return X, y
    return Joined([X, Mirrored(X, data.shape)]), torch.cat([y, y])


def gaps(module: OneLayer, data: Any) -> tuple[Tensor, Tensor]:
    """Cost and gap to the optimum (m,) of linear networks over all that they learned from.

    NaN for a network of λ = 0 or one that has diverged: they have no certificate.
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
    """What ``onelayer test`` prints of linear networks below their figures."""
    where = " and ".join({"train": "training", "val": "validation"}[s] for s in module.learned_from)
    head = f"above the least cost, at most, over the {where} split"
    try:
        costs, gaps_ = (values.tolist() for values in gaps(module, data))
    except InputError as error:
        return f"{head}: not known, as {first_line(error)}"
    lines = [f"{'l2':>9} {'seed':>5} {'cost':>12} {'gap':>9}"]
    for (l2, seed, step), cost, gap in zip(module.members, costs, gaps_, strict=True):
        known = gap == gap  # no NaN
        none = "none of l2 = 0" if l2 == 0 else "diverged"
        figures = f"{cost:>12.6f} {gap:>9.1e}" if known else none
        when = "" if step is None else f"  after {step} updates"
        lines.append(f"{l2:>9.3g} {seed:>5} {figures}{when}")
    return "\n".join([f"{head}:", *lines])

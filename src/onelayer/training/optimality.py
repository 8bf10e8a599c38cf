"""Bounds on the distance of linear networks to their minimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onelayer.core.errors import InputError, first_line
from onelayer.core.optimum.certificate import certify
from onelayer.core.optimum.data import Samples
from onelayer.data.adapter import Weighted, augment_of, weighted
from onelayer.data.augment import Mirrored
from onelayer.data.features import Joined
from onelayer.data.split import Split, Splits
from onelayer.training.module import OneLayer


def joined(data: Any, splits: Sequence[Split]) -> Weighted:
    """Return features, labels and weights of the available splits, joined.

    Raises:
        InputError: none is available, or the data module has only loaders.
    """
    if not isinstance(data, Splits):
        raise InputError(f"{type(data).__name__} has no tensors(split)")
    found = [samples for split in splits if (samples := weighted(data, split)) is not None]
    if not found:
        raise InputError("the split is not available: pass --data.train")
    if len(found) == 1:
        return found[0]
    y, weight = torch.cat([samples.y for samples in found]), None
    if any(samples.weight is not None for samples in found):
        one = torch.ones_like(y, dtype=torch.float32).split([len(samples.y) for samples in found])
        own = zip(found, one, strict=True)
        weight = torch.cat([ones if s.weight is None else s.weight for s, ones in own])
    return Weighted(Joined([samples.X for samples in found]), y, weight)


def learned(data: Any, splits: Sequence[Split]) -> Weighted:
    """Return the samples of training; with ``data.flip``, also the flipped images.

    The mean over both is the expected cost of training with flips.

    Raises:
        InputError: see :func:`joined`; or images are augmented in another way than by flips.
    """
    samples = joined(data, splits)
    asked = augment_of(data).settings()
    if others := asked.keys() - {"flip"}:
        raise InputError(
            f"with data.{min(others - {'border'})} the cost has no fixed minimum; "
            "only data.flip has one"
        )
    if not asked:
        return samples
    X, y, weight = samples
    twice = None if weight is None else torch.cat([weight, weight])
    return Weighted(Joined([X, Mirrored(X, data.shape)]), torch.cat([y, y]), twice)


def gaps(module: OneLayer, data: Any) -> tuple[Tensor, Tensor]:
    """Return cost and gap (m,) of linear networks over the splits they were trained on.

    Networks with λ = 0 and diverged ones have no certificate: NaN.
    """
    X, y, weight = learned(data, module.learned_from)  # type: ignore[arg-type]
    some = ((module.l2 > 0) & module.finite_members()).nonzero().squeeze(1)
    result = torch.full((2, len(module.members)), torch.nan, dtype=torch.float64)
    if len(some):
        W, b = (p.detach()[some].to(X.device) for p in module.weights)
        own = None if weight is None else weight.to(module.device)
        w = module.sample_weight(y.to(module.device), own)
        weights, row = (None, None) if w is None else (w.to(X.device)[None], torch.zeros_like(some))
        samples = Samples(X, y.to(X.device), module.outputs, weights, row)
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

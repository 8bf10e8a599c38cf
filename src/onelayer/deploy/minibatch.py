"""Training of an estimator's network by batches, with cyclical learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from onelayer.core.checks import check_positive, check_share, check_whole
from onelayer.core.cycles import Schedule, cyclical, step_size_for
from onelayer.core.errors import InputError, TrainingError
from onelayer.core.formulas import measure, penalty
from onelayer.core.network import finite_members, initial_parameters
from onelayer.core.update import FusedUpdate
from onelayer.data.loader import ResidentLoader
from onelayer.training.dropout import dropout_mask

BASE_LR = 1e-5  # learning rate at the ends of a cycle, at most
BATCH = 100  # samples of an update, at most
CHUNK = 5000  # samples measured at once


@dataclass(frozen=True)
class Cycles:
    """Hidden units, dropout and schedule of a training run.

    Raises:
        InputError: naming the argument and its range.
    """

    hidden: int
    dropout: float
    max_lr: float
    step_size: int | None
    cycles: int
    epochs: int | None

    def __post_init__(self) -> None:
        check_whole("hidden", self.hidden, 0)
        check_share("dropout", self.dropout)
        check_positive("max_lr", self.max_lr)
        check_whole("cycles", self.cycles, 1)
        for name in ("step_size", "epochs"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        if self.step_size is not None and self.epochs is not None:
            raise InputError(
                f"step_size is {self.step_size} and epochs is {self.epochs}: both set the length "
                "of the training. Give one of them."
            )
        if self.dropout and not self.hidden:
            raise InputError(
                f"dropout is {self.dropout:g}, but there are no hidden units to drop. Set hidden."
            )

    def schedule(self, batches: int) -> tuple[Schedule, int]:
        """Return the learning rate of each update, and the number of updates."""
        size = self.step_size
        if size is None and self.epochs is not None:
            size = -(-self.epochs * batches // (2 * self.cycles))
        size = step_size_for(batches, self.cycles) if size is None else size
        rate = cyclical("triangular", min(BASE_LR, self.max_lr), self.max_lr, size)
        return rate, 2 * size * self.cycles


def train(
    X: Tensor,
    y: Tensor,
    weight: Tensor,
    l2: float,
    asked: Cycles,
    k: int,
    *,
    bias: bool,
    seed: int,
    verbose: int,
) -> tuple[list[Tensor], int]:
    """Return the parameters (1, …) of a network after its training, and the number of updates.

    Args:
        X: features (n, d).
        y: labels (n,).
        weight: weights of the samples (n,).
        l2: λ.
        asked: network and schedule.
        k: number of classes.
        bias: whether the last layer has biases.
        seed: seed of the initial weights, of the order of batches and of dropout.
        verbose: above 0, the cost is printed after each cycle.

    Raises:
        TrainingError: the weights are not finite any more.
    """
    start = initial_parameters([seed], asked.hidden, X.shape[1], k).values()
    parameters = [value.to(X) for value in start]
    scaled = None
    if not bool((weight == weight[0]).all()):
        scaled = (weight * (len(weight) / weight.sum())).to(X)
    loader = ResidentLoader(X, y, min(BATCH, len(X)), seed=seed, checked=True, weight=scaled)
    rate, updates = asked.schedule(len(loader))
    update = FusedUpdate(parameters, l2)
    for step, (x, labels, *w) in enumerate(islice(_batches(loader), updates)):
        mask = None
        if asked.dropout:
            mask = dropout_mask(asked.dropout, [seed], asked.hidden, len(x), step).to(X)
        update(x, labels, rate(step), mask=mask, weight=w[0] if w else None)
        if not bias:
            parameters[-1].zero_()
        if verbose > 0 and (step + 1) % (updates // asked.cycles) == 0:
            cost = cost_of(X, y, weight, l2, parameters)
            print(f"update {step + 1} of {updates}: cost {cost:.6f}", flush=True)
    if not bool(finite_members(parameters).all()):
        raise TrainingError(
            f"the training has diverged: weights are not finite after {updates} updates with "
            f"max_lr = {asked.max_lr:g}. Choose a smaller max_lr, or standardise=True."
        )
    return parameters, updates


def cost_of(X: Tensor, y: Tensor, weight: Tensor, l2: float, parameters: list[Tensor]) -> float:
    """Return the weighted cost J of a network over all samples."""
    chunks = zip(X.split(CHUNK), y.split(CHUNK), strict=True)
    losses = torch.cat([measure(x, labels, parameters)[0][0] for x, labels in chunks]).double()
    loss = (weight.double() * losses).sum() / weight.sum()
    return float(loss + penalty([p.double() for p in parameters], l2))


def _batches(loader: ResidentLoader) -> Any:
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1

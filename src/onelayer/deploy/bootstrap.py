"""Bootstrap: resampled weights as members of one population, and intervals of their scores."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor


def resampled(labels: np.ndarray, rows: int, random: np.random.RandomState) -> np.ndarray:
    """Return how often each sample is drawn (rows, n), with replacement, class by class.

    Each class keeps its number of samples, so no class is missing from a row.

    Source: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), section 8.
    """
    counts = np.zeros((rows, len(labels)))
    for k in np.unique(labels):
        mine = np.flatnonzero(labels == k)
        counts[:, mine] = random.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), rows)
    return counts


def intervals(
    X: Tensor, y: Tensor, W: Tensor, b: Tensor, counts: np.ndarray, level: float
) -> Bunch:
    """Return percentile intervals of accuracy and log loss, (low, high) each.

    Args:
        X: features (n, d).
        y: labels (n,).
        W: weights of each member (m, k, d).
        b: biases (m, k).
        counts: how often each member is measured on each sample (m, n).
        level: share of the members inside the interval.
    """
    accuracy, loss = np.full(len(W), np.nan), np.full(len(W), np.nan)
    for i, (W_, b_, w) in enumerate(zip(W, b, counts, strict=True)):
        some = torch.from_numpy(np.flatnonzero(w)).to(X.device)
        if not len(some):  # a member that has drawn every sample
            continue
        Z = X[some] @ W_.T.to(X.dtype) + b_.to(X.dtype)
        w_, y_ = w[w > 0] / w.sum(), y[some].unsqueeze(1)
        right = (Z.argmax(1, keepdim=True) == y_).squeeze(1).cpu().numpy()
        losses = -Z.double().log_softmax(1).gather(1, y_).squeeze(1).cpu().numpy()
        accuracy[i], loss[i] = w_ @ right, w_ @ losses
    tail = (1 - level) / 2
    return Bunch(
        accuracy=tuple(np.nanquantile(accuracy, [tail, 1 - tail]).tolist()),
        log_loss=tuple(np.nanquantile(loss, [tail, 1 - tail]).tolist()),
    )

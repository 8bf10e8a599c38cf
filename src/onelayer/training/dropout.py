"""The masks of dropout, each a pure function of (seed of the network, update, row, unit)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onelayer.data.random import philox

STREAM = 0xD409
"""Stream of Philox for these draws alone."""
LEVELS = 2**16
"""A probability is rounded to a multiple of 1/LEVELS: an element of a mask costs two bytes."""


def dropout_mask(
    p: float,
    seeds: Sequence[int],
    hidden: int,
    rows: int,
    update: int,
    part: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Tensor:
    """M of an update: each hidden unit of each row is 0 with probability p, else 1/(1 - p).

    Members with one seed have one mask, as each would have alone, and whatever λ they have.
    (Srivastava et al., *Dropout*, JMLR 2014, with the factor at training time.)

    Args:
        p: probability, 0 < p < 1.
        seeds: of each member's initial weights.
        hidden: units h.
        rows: of the whole batch, over all processes.
        update: its number.
        part: of the update, where gradients of several batches are accumulated.
        share: rank and number of processes; this one has the rows ``rank::number``.

    Returns:
        float32 (m, n, h), n being the rows of this process.
    """
    dropped = min(round(p * LEVELS), LEVELS - 1)
    masks = {}
    for seed in dict.fromkeys(seeds):
        drawn = philox(-(-rows * hidden // 4), seed, STREAM, update, part)
        numbers = drawn.astype("<u8", copy=False).view("<u2")[: rows * hidden]
        mine = numbers.reshape(hidden, rows)[:, share[0] :: share[1]]
        masks[seed] = np.where(
            mine >= dropped, np.float32(LEVELS / (LEVELS - dropped)), np.float32(0)
        )
    return torch.from_numpy(np.stack([masks[seed] for seed in seeds])).mT

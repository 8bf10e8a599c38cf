"""One update of a batch that is spread over several processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from onelayer.core import formulas


@torch.no_grad()
def descend_together_(
    X: Tensor,
    y: Tensor,
    parameters: formulas.Parameters,
    l2: formulas.Scalar,
    lr: float,
    n: int | None = None,
) -> None:
    """:func:`formulas.descend_` of the whole batch, of which ``X``, ``y`` are this process's rows.

    The gradients are summed over the processes before the update: each ends with the same bits.

    Args:
        X: (n', d), n' >= 0.
        y: (n',).
        parameters: updated in place.
        l2: λ, number or (m,).
        lr: η.
        n: size of the whole batch; counted, at the price of one more message, if left out.
    """
    if n is None:
        total = torch.tensor(len(X), device=X.device)
        dist.all_reduce(total)
        n = int(total)
    inputs, Z = formulas.forward(X, parameters)
    G = formulas.residual(Z, y, n)
    shares = formulas.gradients(G, inputs, parameters, l2 / dist.get_world_size())
    flat = torch.cat([share.flatten() for share in shares])
    dist.all_reduce(flat)
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.sub_(gradient.view_as(p), alpha=lr)

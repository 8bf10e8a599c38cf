"""L-BFGS's memory: steps and changes of the gradient, of several members at once.

Source: Nocedal and Wright, *Numerical Optimization* (2006), algorithm 7.4.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from onelayer.core.optimum.curvature import Curvature


class History:
    """The last ``size`` steps s and changes t of the gradient, (m, k, d + 1) each."""

    def __init__(self, size: int) -> None:
        self.pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=size)

    def add(self, s: Tensor, t: Tensor) -> None:
        """Add a pair; ignore it for members whose curvature is only rounding error."""
        curvature = dot(s, t)
        enough = curvature > 1e-12 * (dot(s, s) * dot(t, t)).sqrt()
        self.pairs.append((s, t, torch.where(enough, 1 / curvature, 0.0)))

    def keep(self, kept: Tensor) -> None:
        """Keep some of the members."""
        for _ in range(len(self.pairs)):
            s, t, ρ = self.pairs.popleft()
            self.pairs.append((s[kept], t[kept], ρ[kept]))

    def forget(self, members: Tensor) -> None:
        """Drop the pairs of some members, bool (m,)."""
        for _, _, ρ in self.pairs:
            ρ[members] = 0.0

    def solve(self, g: Tensor, curvature: Curvature) -> Tensor:
        """Return ``H⁻¹g`` of the curvature, corrected by the pairs."""
        q, α = g.clone(), []
        for s, t, ρ in reversed(self.pairs):
            α.append(ρ * dot(s, q))
            q -= times(α[-1], t)
        r = curvature.solve(q)
        for s, t, ρ in self.pairs:
            r += times(α.pop() - ρ * dot(t, r), s)
        return r


def dot(A: Tensor, B: Tensor) -> Tensor:
    """Return each member's inner product (m,)."""
    return (A * B).flatten(1).sum(1)


def times(a: Tensor, A: Tensor) -> Tensor:
    """Return each member's A (m, k, d) times its number a (m,)."""
    return a.view(-1, 1, 1) * A

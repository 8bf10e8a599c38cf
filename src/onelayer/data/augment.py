"""Images changed on their way into a batch, and mirrored."""

from __future__ import annotations

from torch import Tensor


def mirror(X: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the mirror images, left and right exchanged, of X (n, d), which are ``shape`` each.

    Args:
        X: flattened images (n, d).
        shape: colours, height, width; their product is d.
    """
    return X.view(-1, *shape).flip(-1).flatten(1)

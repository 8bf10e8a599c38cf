"""Random problems that feed the tests of formulas, updates, solver, loaders and devices."""

import torch


def population(m, hidden, d=7, k=4, n=6, dtype=torch.float64, seed=0):
    """Return X (n, d), labels y (n,), and parameters (m, …) that need gradients."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    X, y = draw(n, d), torch.randint(k, (n,), generator=g)
    shapes = (
        [(m, hidden, d), (m, hidden), (m, k, hidden), (m, k)] if hidden else [(m, k, d), (m, k)]
    )
    return X, y, [draw(*shape).requires_grad_() for shape in shapes]


def updated(
    kind, hidden, l2, dtype=torch.float64, device="cpu", steps=12, smoothing=0.0, p=0.0, weight=None
):  # fmt: skip
    """Return the parameters after updates with batches of two sizes, each with its own rate.

    ``weight`` (40,) or (3, 40) are weights of the samples.
    """
    X, y, parameters = population(3, hidden, n=40)
    X, y = X.to(device, dtype), y.to(device)
    parameters = [p.detach().to(device, dtype) for p in parameters]
    l2 = l2.to(device, dtype) if isinstance(l2, torch.Tensor) else l2
    update = kind(parameters, l2, smoothing)
    g = torch.Generator().manual_seed(0)
    for step in range(steps):
        n = 7 if step % 3 == 2 else 10
        rows = torch.arange(step, step + n, device=device)
        mask = (torch.rand(3, n, hidden, generator=g) >= p).to(device, dtype) / (1 - p)
        w = None if weight is None else weight[..., rows].to(device, dtype)
        update(X[rows], y[rows], 0.3 / (step + 1), mask=mask if p else None, weight=w)
    return parameters


def linear_problem(n=200, d=6, k=3, seed=0, shift=2.0):
    """Return correlated features X (n, d) and noisy labels y (n,), in float64."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(
        d, d, generator=g, dtype=torch.float64
    )
    y = (X[:, :k] + torch.randn(n, k, generator=g, dtype=torch.float64)).argmax(1)
    return X + shift, y


def random_bytes(n, d, seed=0):
    """Return uint8 features (n, d)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, d), generator=generator, dtype=torch.uint8)

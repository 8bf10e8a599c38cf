r"""Curvature of the cost: what a gradient is divided by to make a step.

The Hessian of the mean loss is :math:`\sum_n w_n (\mathrm{diag}\, p_n - p_n p_n^T) \otimes x_n
x_n^T`. Three approximations, from cheap to exact; in all, features are centred and gradients are
(m, k, d + 1) with ∂b last:

- :class:`Kronecker`: S ⊗ C + 2λI with C = mean xxᵀ, shared by all members, and S of each member
  (Martens and Grosse, 2015, section 4.2; for softmax regression Böhning, 1992). C is decomposed
  once and serves every λ.
- the same for features of very different scales, where no decomposition of C is accurate:
  s C + 2λI is factorised for each eigenvalue s of S.
- :class:`FullHessian`: the exact Hessian, for small problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from onelayer.core.optimum.data import Samples

SAMPLE = 2  # samples that C is computed from, for each feature; more save few iterations
BLOCK = 512  # columns of C computed at once
CURVATURE_SAMPLES = 4096  # samples that S is computed from
MAX_FEATURES = 8192  # with more, C comes from a small sample: its decomposition would take too long
SCALES = 32.0  # ratio of the features' deviations up to which C is decomposed in float32
WIDE_SCALES = 2.0**13  # ratio from which float64 is not enough either
FACTORISED = 1024  # features up to which s C + 2λI is then factorised
FLOOR = 1e-6  # least eigenvalue of S, of its largest, where a bias is divided by it


class Curvature(Protocol):
    """An approximation of the Hessian of each member."""

    def solve(self, g: Tensor) -> Tensor:
        """Return ``H⁻¹g`` of a gradient g (m, k, d + 1)."""


class Covariance:
    """C = mean (x - μ)(x - μ)ᵀ of a sample of the data, and how to divide by s C + damping.

    Where C is decomposed: eigenvectors V (d, r), eigenvalues e (r,); in all other directions C is
    ``rest``. Otherwise C itself (d, d), scaled by ``scale`` (d,) on both sides.
    """

    def __init__(
        self,
        mean: Tensor,
        V: Tensor,
        e: Tensor,
        rest: float = 0.0,
        scaled: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.mean, self.V, self.e, self.rest, self.scaled = mean, V, e, rest, scaled

    @classmethod
    def of(cls, samples: Samples, dtype: torch.dtype) -> Covariance:
        """Compute C from enough samples to be close and few enough to take seconds."""
        large = samples.d > MAX_FEATURES
        most = CURVATURE_SAMPLES if large else max(SAMPLE * samples.d, CURVATURE_SAMPLES)
        some = samples.sample(most)
        mean, deviation = _moments(some)
        if not samples.bias:  # nothing takes up the mean
            mean, deviation = torch.zeros_like(mean), (mean.square() + deviation.square()).sqrt()
        varying = deviation[deviation > 0]
        ratio = float(varying.max() / varying.min()) if len(varying) else 1.0
        if not ratio <= SCALES:
            dtype = torch.float64
        if not ratio <= WIDE_SCALES and samples.d <= FACTORISED:
            return cls._factorised(some, mean, deviation)
        if some.n < samples.d:
            return cls._of_few(some, mean, some.n == samples.n)
        C = torch.zeros(samples.d, samples.d, dtype=dtype, device=mean.device)
        for _, X in some.chunks(samples.d, dtype):
            _add_square(C, X - mean.to(dtype))
        e, V = torch.linalg.eigh(some.total(C).div_(some.n))  # which reads the lower half
        return cls(mean.to(dtype), V, e.clamp_(min=0))

    @classmethod
    def _of_few(cls, some: Samples, mean: Tensor, all_: bool) -> Covariance:
        """Decompose C by the Gram matrix (n, n), which has the same eigenvalues apart from 0.

        In float64: in float32 V is not orthogonal enough, and H⁻¹ would not be positive.
        """
        X = some.gathered(torch.cat([X for _, X in some.chunks(some.d, mean.dtype)])) - mean
        e, U = torch.linalg.eigh(X @ X.T / some.n)
        kept = e > 1e-10 * e[-1]
        e, U = e[kept], U[:, kept]
        rest = 0.0 if all_ or not len(e) else float(e[0])
        return cls(mean, X.T @ (U / (e * some.n).sqrt()), e, rest)

    @classmethod
    def _factorised(cls, some: Samples, mean: Tensor, deviation: Tensor) -> Covariance:
        """Keep C of features scaled to deviation 1, by powers of two: no rounding."""
        scale = torch.where(deviation > 0, deviation, 1.0).log2().round().exp2()
        C = torch.zeros(some.d, some.d, dtype=torch.float64, device=mean.device)
        for _, X in some.chunks(some.d, torch.float64):
            A = (X - mean) / scale
            C.addmm_(A.T, A)
        none = mean.new_zeros(some.d, 0)
        return cls(mean, none, none[0], scaled=(some.total(C).div_(some.n), scale))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that directions are computed in."""
        return self.mean.dtype

    def double(self) -> Covariance:
        """Return the same in float64."""
        return Covariance(
            self.mean.double(), self.V.double(), self.e.double(), self.rest, self.scaled
        )

    def solve(self, A: Tensor, s: Tensor, damping: Tensor) -> Tensor:
        """Return ``A (s C + damping I)⁻¹`` of A (m, k, d), s (m, k, 1) and damping (m, 1, 1)."""
        if self.scaled is not None:
            return self._solve_scaled(A, s, damping)
        inverse = 1 / (s * self.e + damping)
        R, rest = A @ self.V, 1 / (s * self.rest + damping)
        if len(self.V) == len(self.e):
            return (R * inverse) @ self.V.T
        return (R * (inverse - rest)) @ self.V.T + rest * A

    def _solve_scaled(self, A: Tensor, s: Tensor, damping: Tensor) -> Tensor:
        """Factorise s C̃ + damping / scale² for each member and s, a few at a time."""
        assert self.scaled is not None
        C, scale = self.scaled
        m, k, d = A.shape
        s_, damping_ = s.reshape(-1, 1), damping.expand(m, k, 1).reshape(-1, 1)
        B, result = (A / scale).reshape(-1, d), []
        for some in torch.arange(m * k, device=A.device).split(max(1, 2**23 // d**2)):
            H = s_[some].unsqueeze(2) * C
            H.diagonal(dim1=1, dim2=2).add_(damping_[some] / scale.square())
            result.append(Factors(H).solve(B[some]))
        return torch.cat(result).view_as(A) / scale


class Factors:
    """Cholesky factors of positive semidefinite H (m, d, d), regularised as far as needed.

    Rows and columns are scaled to a diagonal of 1 first, which makes the factors independent of the
    unknowns' units.
    """

    def __init__(self, H: Tensor) -> None:
        self.unit = H.diagonal(dim1=1, dim2=2).clamp(min=1e-300).rsqrt()
        H = H * self.unit.unsqueeze(2) * self.unit.unsqueeze(1)
        ridge = 1e-15
        self.L, failed = torch.linalg.cholesky_ex(H)
        while bool(failed.any()) and ridge < 1:
            bad = failed > 0
            H[bad] += ridge * torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
            self.L[bad], failed[bad] = torch.linalg.cholesky_ex(H[bad])
            ridge *= 10

    def solve(self, b: Tensor) -> Tensor:
        """Return H⁻¹b of b (m, d)."""
        x = torch.cholesky_solve((b * self.unit).unsqueeze(2), self.L).squeeze(2)
        return x * self.unit


def _moments(some: Samples) -> tuple[Tensor, Tensor]:
    """Compute mean and deviation of each feature (d,), in float64."""
    total, square = (torch.zeros(some.d, dtype=torch.float64, device=some.y.device) for _ in "ab")
    for _, X in some.chunks(some.d, some.X.dtype):
        total += X.sum(0, dtype=torch.float64)
    mean = some.total(total) / some.n
    for _, X in some.chunks(some.d, some.X.dtype):
        square += (X - mean).square().sum(0)
    deviation = (some.total(square) / some.n).sqrt()
    return mean, torch.where(deviation > 1e-7 * mean.abs(), deviation, 0.0)


def _add_square(C: Tensor, A: Tensor) -> None:
    """Add AᵀA to the lower half of C."""
    for start in range(0, len(C), BLOCK):
        stop = start + BLOCK
        C[start:stop, :stop].addmm_(A[:, start:stop].T, A[:, :stop])


class Kronecker:
    """S ⊗ C + 2λI of each member, and S for the bias."""

    def __init__(self, C: Covariance, S: Tensor, l2: Tensor) -> None:
        self.C, self.l2 = C, l2.to(S.dtype).view(-1, 1, 1)
        s, self.U = torch.linalg.eigh(S)
        self.s: Tensor = s.clamp(min=0).unsqueeze(2)  # (m, k, 1)

    def of_bias(self, g: Tensor) -> Tensor:
        """Return ``∂b S⁻¹ ∂b`` (m,)."""
        turned: Tensor = self.U.mT @ g[..., -1:].to(self.U.dtype)
        return (turned.square() / self._of_bias()).sum((1, 2))

    def solve(self, g: Tensor) -> Tensor:
        """Return ``H⁻¹g``: rotate by both, divide, rotate back."""
        turned = self.U.mT @ g.to(self.U.dtype)
        W = self.C.solve(turned[..., :-1], self.s, 2 * self.l2)
        b = turned[..., -1:] / self._of_bias()
        return without_shift(self.U @ torch.cat([W, b], 2)).to(g.dtype)

    def _of_bias(self) -> Tensor:
        result: Tensor = (self.s + FLOOR * self.s[:, -1:]).clamp(min=1e-30)
        return result


def without_shift(step: Tensor) -> Tensor:
    """Return a step (m, k, d + 1) that sums to 0 over the classes.

    A shift of all classes changes no probability, and W sums to 0 at the minimum: rounding alone
    would be divided by a curvature of 2λ or 0.
    """
    return step - step.mean(1, keepdim=True)


class FullHessian:
    """The exact Hessian of each member, in float64.

    Args:
        chunks: gives, each time, indices of samples, features (n', d) and logits (m, k, n').
        samples: for their weights.
        members: indices (m,).
        mean: μ (d,), which features are centred by.
        l2: λ (m,).
    """

    def __init__(
        self, chunks: Chunks, samples: Samples, members: Tensor, mean: Tensor, l2: Tensor
    ) -> None:
        m, k, d = len(members), samples.k, samples.d
        H = torch.zeros(m, k, d + 1, k, d + 1, dtype=torch.float64, device=mean.device)
        size = max(1, 2**22 // (k * (d + 1)))
        for at, X, Z in chunks():
            A = with_ones(X - mean, samples.bias)
            w = samples.weight(at, members, torch.float64)
            P = Z.softmax(1)
            for i, (p, p_w) in enumerate(zip(P.mT, (P * w).mT, strict=True)):  # (n', k)
                for p_, p_w_, A_ in zip(p.split(size), p_w.split(size), A.split(size), strict=True):
                    _add_hessian(H[i], p_.unsqueeze(2), p_w_.unsqueeze(2), A_)
        samples.totals(H)
        # Shifts of all classes at once change nothing: any curvature will do.
        shift = H.diagonal(dim1=1, dim2=3).diagonal(dim1=1, dim2=2).mean(1) / k  # (m, d + 1)
        H.diagonal(dim1=2, dim2=4).add_(shift.view(m, 1, 1, d + 1))
        self.H = H.view(m, k * (d + 1), k * (d + 1))
        penalty = torch.cat([mean.new_ones(d), mean.new_full((1,), not samples.bias)]).repeat(k)
        self.H.diagonal(dim1=1, dim2=2).add_(2 * l2.view(-1, 1) * penalty)
        self.factors = Factors(self.H)

    def solve(self, g: Tensor) -> Tensor:
        """Return ``H⁻¹g``."""
        return without_shift(self.factors.solve(g.flatten(1)).view_as(g))

    def times(self, p: Tensor) -> Tensor:
        """Return ``Hp``."""
        return torch.bmm(self.H, p.flatten(1).unsqueeze(2)).view_as(p)


class ClassBlocks:
    """The diagonal blocks of the Hessian, one for each class: Σ w p (1 - p) xxᵀ + 2λI."""

    def __init__(
        self, chunks: Chunks, samples: Samples, members: Tensor, mean: Tensor, l2: Tensor
    ) -> None:
        m, k, d = len(members), samples.k, samples.d
        H = torch.zeros(m, k, d + 1, d + 1, dtype=torch.float64, device=mean.device)
        for at, X, Z in chunks():
            A = with_ones(X - mean, samples.bias)
            P = Z.softmax(1)
            R = P * (1 - P) * samples.weight(at, members, torch.float64)
            for i in range(m):
                for j in range(k):
                    H[i, j].addmm_((A * R[i, j].unsqueeze(1)).T, A)
        samples.totals(H)
        H = H.view(m * k, d + 1, d + 1)
        penalised = slice(None, -1 if samples.bias else None)
        H.diagonal(dim1=1, dim2=2)[:, penalised] += 2 * l2.repeat_interleave(k).unsqueeze(1)
        self.factors = Factors(H)

    def solve(self, g: Tensor) -> Tensor:
        """Return ``H⁻¹g``."""
        return without_shift(self.factors.solve(g.flatten(0, 1)).view_as(g))


def with_ones(X: Tensor, bias: bool) -> Tensor:
    """Return X (n, d) with a column for the bias: of ones, or of zeros where there is none."""
    return torch.cat([X, X.new_full((len(X), 1), bias)], 1)


Chunks = Callable[[], Iterator[tuple[slice, Tensor, Tensor]]]
"""Yields, each time it is called, indices of samples, features (n', d), logits (m, k, n')."""


def _add_hessian(H: Tensor, p: Tensor, p_w: Tensor, A: Tensor) -> None:
    """Add Σ w (diag p - ppᵀ) ⊗ aaᵀ to H (k, d, k, d), of p, p w (n', k, 1) and A (n', d)."""
    R, R_w = (p * A.unsqueeze(1)).flatten(1), p_w * A.unsqueeze(1)  # (n', k d), (n', k, d)
    H -= (R_w.flatten(1).T @ R).view_as(H)
    H.diagonal(dim1=0, dim2=2).add_(torch.einsum("nkd,ne->dek", R_w, A))

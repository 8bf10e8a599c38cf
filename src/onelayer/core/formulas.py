r"""The maths of both networks: logits, cost, residual, gradients and the SGD update.

One letter per axis, here and in every einsum, docstring and test of the package:

======  =====================================  =======================
letter  axis                                   size on CIFAR-10
======  =====================================  =======================
m       member (network) of the population     1, 2, ...
n       sample of the batch                    100
d       input feature                          3072
h       hidden unit                            50
k       class                                  10
======  =====================================  =======================

A network is its parameters: ``(W, b)`` for the linear softmax, ``(W1, b1, W2, b2)`` with one
hidden ReLU layer. Every weight is ``(m, out, in)``, every bias ``(m, out)``; one network is a
population of one. All members see the same batch ``X`` (n, d), so the first layer of the whole
population is one GEMM.

.. math::

    H &= \max(0, X W_1^T + b_1), \quad Z = H W_2^T + b_2, \quad P = \mathrm{softmax}(Z) \\
    J &= \tfrac1n \sum_n -\log P_{n, y_n} + \lambda \sum_l \lVert W_l \rVert^2 \\
    G &= \partial J / \partial Z = (P - Y) / n, \quad
    \partial W_2 = G^T H + 2 \lambda W_2, \quad \partial b_2 = \textstyle\sum_n G \\
    D &= (G W_2) \odot [H > 0], \quad
    \partial W_1 = D^T X + 2 \lambda W_1, \quad \partial b_1 = \textstyle\sum_n D

(the linear network: H = X, and only the second line of gradients). Biases are not penalised, and
it is λ, not λ/2. Source: KTH DD2424, assignments 1 and 2; Bishop, *Pattern Recognition and Machine
Learning* (2006), eq. 4.109.

Two more regularisers are used in training only. Dropout with probability p (Srivastava et al.,
JMLR 2014) multiplies H by a mask M of 0 and 1/(1-p). Label smoothing s (Szegedy et al.,
arXiv:1512.00567, section 7) trains towards Q instead of the labels Y:

.. math::

    H &= \max(0, X W_1^T + b_1) \odot M, \quad D = (G W_2) \odot M \odot [H > 0] \\
    Q &= (1 - s) Y + s / k, \quad
    J = \tfrac1n \sum_n \sum_k -Q_{nk} \log P_{nk} + \lambda \sum_l \lVert W_l \rVert^2, \quad
    G = (P - Q) / n

Samples may have weights w, not negative, with mean 1 over the training split; (n,), or (m, n) for
weights of each member. They multiply losses and residuals:

.. math::

    J = \tfrac1n \sum_n w_n \ell_n + \lambda \sum_l \lVert W_l \rVert^2, \quad
    G = w \odot (P - Q) / n

Over the whole split this is the weighted mean, as Σ w = n. In a batch n is the number of samples,
not the batch's own Σ w. The gradient of a random batch is then an unbiased estimate of the gradient
of J. ``cross_entropy(weight=…)`` of torch divides by the batch's own weights, and is biased.

GEMMs run in the dtype of ``X`` (bfloat16 under autocast), everything else in that of the
parameters. Nothing here checks values or reads them back from the device.

Tensors (m, n, k) and (m, n, h) lie in memory as (m, k, n), samples innermost (``.mT``). The softmax
then runs along complete vectors instead of ten numbers at a time, and the residuals of all members
are one factor of a GEMM without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

Parameters = Sequence[Tensor]
"""``(W, b)`` or ``(W1, b1, W2, b2)``: weights (m, out, in) and biases (m, out), in turn."""

Scalar = float | Tensor
"""A coefficient: one for all members, or a tensor (m,)."""


def affine(A: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Return ``Z[m,n,k] = sum_d A[n,d] W[m,k,d] + b[m,k]``, in the dtype of ``W``.

    ``A`` is (n, d), shared by all members, or (m, n, d), each member's own.
    """
    W_, b_ = cast(W, A.dtype), cast(b, A.dtype)
    if A.ndim == 2:
        m, k, d = W.shape
        Z = _shared_affine(A, W_.reshape(m * k, d), b_.reshape(m * k))  # all members in one GEMM
        Z = Z.view(m, k, A.shape[0])
    else:
        Z = torch.baddbmm(b_.unsqueeze(2), W_, A.mT)
    return cast(Z.mT, W.dtype)


def cast(T: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``T`` in a dtype. The test is cheaper than a call of ``T.to`` that changes nothing."""
    return T if T.dtype == dtype else T.to(dtype)


def _shared_affine(A: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Return ``W Aᵀ + b`` (k, n) of A (n, d), W (k, d), b (k).

    For many samples and few units, a 1x1 convolution whose pixels are the samples is up to twice as
    fast on a CPU as the BLAS of torch's wheels. It reads A as it lies in memory.
    """
    n, d = A.shape
    many = len(W) > FEW_UNITS
    if n < MANY_ROWS or many or A.device.type != "cpu" or A.dtype != torch.float32:
        return torch.addmm(b.unsqueeze(1), W, A.T)
    k = len(W)
    blank = -k % LANES
    pixels = A.reshape(1, n, 1, d).permute(0, 3, 1, 2)
    kernels = pad(W, (0, 0, 0, blank)).view(-1, d, 1, 1)
    return conv2d(pixels, kernels, pad(b, (0, blank))).view(-1, n)[:k].contiguous()


MANY_ROWS = 1000  # samples from which a convolution is faster, for 1, 20 and 64 networks
FEW_UNITS = 640  # units up to which it is faster
LANES = 16  # units that it handles at once: 50 units take a quarter longer than 64
MIXED_BLOCK = 2**22  # bytes of weights that are updated at a time under autocast


def forward(
    X: Tensor, parameters: Parameters, mask: Tensor | None = None
) -> tuple[list[Tensor], Tensor]:
    """Return each layer's input, ``[X]`` or ``[X, H]``, and the logits ``Z`` (m, n, k).

    ``mask`` is dropout's M (m, n, h).
    """
    inputs = [X]
    *hidden, (W, b) = layers(parameters)
    for W1, b1 in hidden:
        H = affine(inputs[-1], W1, b1).relu_()
        inputs.append(cast(H if mask is None else H.mul_(mask), X.dtype))
    return inputs, affine(inputs[-1], W, b)


def layers(parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
    """Return the ``(W, b)`` of each layer, first to last."""
    return list(zip(parameters[0::2], parameters[1::2], strict=True))


def logits(X: Tensor, parameters: Parameters) -> Tensor:
    """Return the logits ``Z`` (m, n, k) of inputs ``X`` (n, d)."""
    return forward(X, parameters)[1]


def cross_entropy(Z: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return each sample's loss ``-log P[m,n,y[n]]`` (m, n); finite for any finite logits.

    With label smoothing s it is ``sum_k -Q[n,k] log P[m,n,k]``.
    """
    log_P = Z.mT.log_softmax(1)
    loss = -log_P.gather(1, _label_index(Z, y)).squeeze(1)
    return (1 - smoothing) * loss - smoothing * log_P.mean(1) if smoothing else loss


def _label_index(Z: Tensor, y: Tensor) -> Tensor:
    return y.expand(Z.shape[0], 1, -1)  # (m, 1, n), into the classes of Z.mT


def penalty(parameters: Parameters, l2: Scalar) -> Tensor | float:
    """Return ``λ Σ W²`` over the weights of each member (m,); biases are not penalised."""
    return l2 * sum(W.square().sum((1, 2)) for W, _ in layers(parameters))


def residual(
    Z: Tensor,
    y: Tensor,
    n: float | None = None,
    smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return ``G = w (P - Q) / n`` (m, n, k), the gradient of the mean loss for the logits.

    Q are the labels Y, smoothed where ``smoothing`` is not 0. ``n`` is the size of the whole batch
    where this one is a share of it. ``weight`` w is (n,) or (m, n).
    """
    G, index = Z.mT.softmax(1), _label_index(Z, y)
    if smoothing:
        G.sub_(smoothing / Z.shape[2])
    G.scatter_(1, index, smoothing - 1.0, reduce="add")  # with a number: deterministic on a GPU
    n = n or Z.shape[1]
    return (G.div_(n) if weight is None else G.mul_((weight / n).unsqueeze(-2))).mT


def input_gradient(D: Tensor, W: Tensor) -> Tensor:
    """Return ``∂A[m,n,d] = sum_k D[m,n,k] W[m,k,d]``, the gradient for a layer's input."""
    return torch.bmm(cast(W, D.dtype).mT, D.mT).mT


def relu_mask(D: Tensor, H: Tensor) -> Tensor:
    """Set ``D`` to 0, in place, unless the hidden unit is active, H > 0. The slope at 0 is 0."""
    return D.mul_(H > 0)


def residuals(
    G: Tensor, inputs: Sequence[Tensor], parameters: Parameters, mask: Tensor | None = None
) -> list[Tensor]:
    """Return each layer's residual, first to last: ``[G]`` or ``[(G W2) * M * [H > 0], G]``."""
    D = [G]
    for (W, _), H in zip(layers(parameters)[:0:-1], inputs[:0:-1], strict=True):
        dH = cast(input_gradient(cast(D[0], H.dtype), W), G.dtype)
        D.insert(0, relu_mask(dH if mask is None else dH.mul_(mask), H))
    return D


def combine(
    W: Tensor, D: Tensor, A: Tensor, beta: Scalar, alpha: Scalar, out: Tensor | None = None
) -> Tensor:
    """Return ``β W[m,k,d] + α sum_n D[m,n,k] A[n,d]``, by one GEMM.

    With β = 2λ and α = 1 this is the weight gradient ``DᵀA + 2λW``. With β = 1 - 2ηλ, α = -η and
    ``out=W`` it is the SGD update, and the gradient is never stored.

    Args:
        W: (m, k, d).
        D: residual (m, n, k).
        A: the layer's input, (n, d) or (m, n, d).
        beta: number or (m,).
        alpha: number or (m,).
        out: W itself; by default a new tensor.
    """
    m, k, d = W.shape
    if isinstance(alpha, Tensor):
        D, alpha = D * alpha.view(-1, 1, 1), 1.0  # the residual is by far the smaller factor
    if isinstance(beta, Tensor):
        beta = beta.view(-1, 1, 1)
    D = cast(D, A.dtype)
    if A.dtype != W.dtype:
        return _combine_mixed(W, D, A, beta, alpha, torch.empty_like(W) if out is None else out)
    if out is None or isinstance(beta, Tensor) or beta != 1:
        # Not by the GEMM: on a busy CPU it is slower if it also scales W.
        out = torch.mul(W, beta, out=out)
    if A.ndim == 2:
        out.view(m * k, d).addmm_(D.mT.reshape(m * k, A.shape[0]), A, alpha=alpha)
        return out
    return out.baddbmm_(D.mT, A, alpha=alpha)


def _combine_mixed(
    W: Tensor, D: Tensor, A: Tensor, beta: Scalar, alpha: float, out: Tensor
) -> Tensor:
    """Return :func:`combine` under autocast: the product in A's low precision, the sum in full.

    The product must be written before it is added. On a CPU this is done for as many units at a
    time as the caches hold, which halves the time for a large W.
    """
    m, k, d = W.shape
    units = k if W.device.type != "cpu" else max(1, MIXED_BLOCK // (m * d * W.element_size()))
    for W_, D_, out_ in zip(*(T.split(units, 1) for T in (W, D.mT, out)), strict=True):
        product = D_.reshape(-1, len(A)) @ A if A.ndim == 2 else torch.bmm(D_, A)
        torch.mul(W_, beta, out=out_).add_(product.view_as(W_), alpha=alpha)
    return out


def weight_gradient(D: Tensor, A: Tensor, W: Tensor, l2: Scalar) -> Tensor:
    """Return ``∂W = DᵀA + 2λW`` (m, k, d)."""
    return combine(W, D, A, beta=2 * l2, alpha=1.0)


def bias_gradient(D: Tensor, b: Tensor) -> Tensor:
    """Return ``∂b = sum_n D`` (m, k)."""
    return D.sum(1)


def gradients(
    G: Tensor,
    inputs: Sequence[Tensor],
    parameters: Parameters,
    l2: Scalar,
    mask: Tensor | None = None,
) -> list[Tensor]:
    """Return the gradient of the cost for each parameter, in order and shape of ``parameters``.

    ``G`` is the :func:`residual` (m, n, k), ``inputs`` are those of :func:`forward`, which had the
    same ``mask``.
    """
    result = []
    D = residuals(G, inputs, parameters, mask)
    for (W, b), A, D_ in zip(layers(parameters), inputs, D, strict=True):
        result += [weight_gradient(D_, A, W, l2), bias_gradient(D_, b)]
    return result


def descend_(
    X: Tensor,
    y: Tensor,
    parameters: Parameters,
    l2: Scalar,
    lr: Scalar,
    smoothing: float = 0.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> None:
    """Make one SGD update in place: θ ← θ - η ∂J/∂θ of every member.

    The residuals are those of :func:`gradients`. The last GEMM (:func:`combine`) writes into the
    weights instead of into a gradient.
    """
    inputs, Z = forward(X, parameters, mask)
    G = residual(Z, y, smoothing=smoothing, weight=weight)
    D = residuals(G, inputs, parameters, mask)
    for (W, b), A, D_ in zip(layers(parameters), inputs, D, strict=True):
        combine(W, D_, A, beta=1 - 2 * lr * l2, alpha=-lr, out=W)
        db = bias_gradient(D_, b)
        if isinstance(lr, Tensor):
            b.sub_(db * lr.view(-1, 1))
        else:
            b.sub_(db, alpha=lr)


def measure(X: Tensor, y: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Return the loss of each sample, and whether each is predicted correctly, (m, n) each.

    Dropout and label smoothing are not used: the loss is that of the labels. A sample whose logits
    are not all finite counts as wrong, because argmax takes NaN for the largest.
    """
    Z = logits(X, parameters)
    correct = (Z.mT.max(1).indices == y) & (Z.mT.abs().amax(1) < torch.inf)
    return cross_entropy(Z, y), correct

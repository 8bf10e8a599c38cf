"""The cost of both networks, as functions whose backward is the analytic gradient.

>>> import torch
>>> X, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
>>> W, b = torch.zeros(2, 3, 4, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
>>> J = linear_cost(X, y, W, b, l2=[0.0, 0.1])
>>> J.shape
torch.Size([2])
>>> J.sum().backward()  # the sum, never the mean: members must not scale each other's gradients
>>> W.grad.shape
torch.Size([2, 3, 4])
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from onelayer.core import formulas
from onelayer.core.checks import check_labels, check_pair, check_share, check_weight
from onelayer.core.errors import InputError


class _SoftmaxCost(Function):
    """``apply(X, y, l2, n, smoothing, mask, weight, *parameters)``: the cost ``J[m]``."""

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        y: Tensor,
        l2: Tensor,
        n: float,
        smoothing: float,
        mask: Tensor | None,
        weight: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        gemm_X = gemm_input(X)
        with plain(X):
            inputs, Z = formulas.forward(gemm_X, parameters, mask)
            G = formulas.residual(Z, y, n, smoothing, weight)
            ctx.save_for_backward(G, l2, mask, *parameters, *inputs)
            ctx.count, ctx.input_dtype = len(parameters), X.dtype
            losses = formulas.cross_entropy(Z, y, smoothing)
            losses = losses if weight is None else losses.mul_(weight)
            return losses.sum(1) / n + formulas.penalty(parameters, l2)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _SoftmaxCost.analytic_gradients(ctx, upstream)
        if torch.is_grad_enabled():  # create_graph=True: the caller wants to differentiate again
            anchor = torch.zeros((), requires_grad=True)
            return tuple(
                g if g is None else _Once.apply(g, anchor)  # type: ignore[no-untyped-call]
                for g in gradients
            )
        return gradients

    @staticmethod
    @once_differentiable
    def analytic_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return ∂J/∂X if it is needed, and ∂J/∂θ, scaled by each member's upstream gradient."""
        G, l2, mask, *saved = ctx.saved_tensors
        parameters, inputs = saved[: ctx.count], saved[ctx.count :]
        with plain(G):
            G = G * upstream.view(-1, 1, 1)
            gradients = formulas.gradients(G, inputs, parameters, l2 * upstream, mask)
            dX = None
            if ctx.needs_input_grad[0]:
                D = formulas.residuals(G, inputs, parameters, mask)[0]
                dX = formulas.input_gradient(D, parameters[0]).sum(0).to(ctx.input_dtype)
        return dX, None, None, None, None, None, None, *gradients


class _Once(Function):
    """A gradient that raises an error when it is differentiated.

    ``once_differentiable`` raises only if the upstream gradient itself needs a gradient. The
    upstream gradient of ``cost.sum()`` needs none, so a gradient penalty would silently be treated
    as a constant.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchor: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> NoReturn:
        raise RuntimeError(
            "the analytic gradient is once_differentiable: its residual was saved as a constant, "
            "so a second derivative would be wrong. Use torch.nn layers where you need one."
        )


def linear_cost(
    X: Tensor,
    y: Tensor,
    W: Tensor,
    b: Tensor,
    l2: float | Sequence[float] | Tensor = 0.0,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return ``J[m] = sum_n w[n] L[m,n] / sum_n w[n] + λ[m] Σ W[m]²``.

    The loss of a sample is ``L[m,n] = -log softmax(X Wᵀ + b)[m,n,y[n]]``.

    Args:
        X: inputs (n, d), floating point, shared by all members.
        y: labels (n,), int64, from 0 to k - 1.
        W: weights (m, k, d).
        b: biases (m, k), not penalised.
        l2: λ, one for all members or one each (m,).
        label_smoothing: s, from 0 to below 1: the labels are (1 - s) Y + s/k.
        weight: w of the samples, not negative: (n,) for all members, or (m, n). Default: 1 each.

    Returns:
        The cost of each member (m,). Differentiate its sum. Differentiable once, with respect to
        X, W and b.

    Raises:
        InputError: if shapes do not fit or, in host memory, a label is outside 0...k-1 or a weight
            is negative or not finite. (On a device the check would wait for it; the data module
            checks once.)

    Source: KTH DD2424, assignment 1, eq. 5; gradients there eq. 10-11.
    """
    return cost(X, y, (W, b), l2, label_smoothing=label_smoothing, weight=weight)


def hidden_cost(
    X: Tensor,
    y: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    l2: float | Sequence[float] | Tensor = 0.0,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the cost of networks with the hidden layer ``max(0, X W1ᵀ + b1)``.

    Arguments, result and errors are those of :func:`linear_cost`. W1 is (m, h, d), b1 (m, h), W2
    (m, k, h), b2 (m, k); λ penalises W1 and W2. ``mask`` (m, n, h) multiplies the hidden layer. For
    dropout with probability p it holds 0 and 1/(1 - p).

    Source: KTH DD2424, assignment 2, eq. 1-5; :mod:`onelayer.core.formulas` for the mask.
    """
    parameters = (W1, b1, W2, b2)
    return cost(X, y, parameters, l2, label_smoothing=label_smoothing, mask=mask, weight=weight)


def cost(
    X: Tensor,
    y: Tensor,
    parameters: formulas.Parameters,
    l2: float | Sequence[float] | Tensor = 0.0,
    n: float | None = None,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the cost (m,) of the network with these parameters, linear or hidden.

    ``n`` is the size of the whole batch where this one is a share of it, which may be empty. The
    weights must then have mean 1 over the training split; otherwise they are scaled to sum to n.
    """
    check_shapes(X, y, parameters, at_least=1 if n is None else 0)
    check_share("label_smoothing", label_smoothing)
    W = parameters[-2]
    hidden = (W.shape[0], len(X), W.shape[2]) if len(parameters) > 2 else None
    if mask is not None and mask.shape != hidden:
        raise InputError(
            f"a mask of shape {tuple(mask.shape)} does not fit: "
            + (f"it must be (m, n, h) = {hidden}." if hidden else "there is no hidden layer.")
        )
    if y.device.type == "cpu":
        check_labels(y, classes=W.shape[1])
    if isinstance(l2, int | float):
        l2 = W.new_full((), l2)  # made on the device: the host does not wait
    l2 = torch.as_tensor(l2, dtype=W.dtype, device=W.device).expand(W.shape[0])
    if weight is not None:
        weight = _scaled(weight, y, n, W)
    result: Tensor = _SoftmaxCost.apply(  # type: ignore[no-untyped-call]
        X, y, l2, n or len(X), label_smoothing, mask, weight, *parameters
    )
    return result


def _scaled(weight: Tensor, y: Tensor, n: float | None, W: Tensor) -> Tensor:
    """Return checked weights in the dtype of ``W``, scaled to sum to n unless ``n`` is given."""
    if weight.device.type == "cpu":  # on a device the check would wait for it
        check_weight(weight, len(y))
    if weight.requires_grad:
        raise InputError(
            "weight requires a gradient, but the analytic gradient has none for the sample "
            "weights. Pass weight.detach()."
        )
    if n is None:
        total = weight.sum(-1, keepdim=True)
        if total.device.type == "cpu" and not bool((total > 0).all()):
            raise InputError("the weights are all zero: at least one sample needs one above zero.")
        weight = weight * (len(y) / total)
    return weight.to(W.dtype)


def check_shapes(X: Tensor, y: Tensor, parameters: formulas.Parameters, at_least: int = 1) -> None:
    """Raise :class:`InputError`, with the shapes, unless they fit each other."""
    check_pair(X, y, at_least)
    width = X.shape[1]
    for W, b in formulas.layers(parameters):
        if W.ndim != 3 or W.shape[2] != width or b.shape != W.shape[:2]:
            raise InputError(
                f"an input of width {width} needs weights (m, out, {width}) and biases (m, out), "
                f"not {tuple(W.shape)} and {tuple(b.shape)}."
            )
        width = W.shape[1]


def gemm_input(X: Tensor) -> Tensor:
    """Return ``X`` in autocast's dtype if autocast is on; float64 stays, as in torch's layers."""
    device = X.device.type
    if torch.is_autocast_enabled(device) and X.dtype != torch.float64:
        return X.to(torch.get_autocast_dtype(device))
    return X


def plain(X: Tensor) -> AbstractContextManager[Any]:
    """Turn autocast off: :func:`gemm_input` chooses the dtype once, for forward and backward."""
    device = X.device.type
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()

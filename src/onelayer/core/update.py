"""The ways to make one update: θ ← θ - η ∂J/∂θ of every member, in place.

All of them are :func:`onelayer.core.formulas.descend_` or its parts; which one trains is chosen
once, when a training starts. Beside them stands autograd with torch.optim.SGD, which any other
training of a LightningModule uses; the tests compare them.

On a GPU a kernel of these sizes is done before the host has launched the next one: an update takes
as long as its dozen launches from Python do. A CUDA graph records them once and launches them
together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from onelayer.core import formulas
from onelayer.core.autograd import gemm_input, plain
from onelayer.core.errors import first_line

CACHE = 2**24
"""Bytes of weights that a CPU's caches keep from the logits to the update."""


class Update(Protocol):
    """One update of a population by a batch."""

    def __call__(
        self,
        X: Tensor,
        y: Tensor,
        lr: float,
        n: int | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> None:
        """Update in place by (n', d) features, labels and η.

        ``n`` is the number of samples over all processes, ``mask`` (m, n', h) that of dropout,
        ``weight`` (n',) or (m, n') that of the samples, with mean 1 over the training split.
        """


class FusedUpdate:
    """One GEMM per layer is both gradient and update; kernel by kernel, in one process.

    Args:
        parameters: updated in place.
        l2: λ, number or (m,).
        smoothing: s of label smoothing.
    """

    def __init__(
        self, parameters: formulas.Parameters, l2: formulas.Scalar, smoothing: float = 0.0
    ) -> None:
        self.parameters, self.l2, self.smoothing = parameters, l2, smoothing
        if isinstance(l2, Tensor):  # as a number where all members share it: fewer operations
            shared = bool((l2 == l2[0]).all())
            self.l2 = float(l2[0]) if shared else l2.to(parameters[0].dtype)
        self._groups = _groups(parameters)

    def __call__(
        self,
        X: Tensor,
        y: Tensor,
        lr: float,
        n: int | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> None:
        """Update in place, with products in autocast's dtype where autocast is on."""
        X = gemm_input(X)
        with torch.no_grad(), plain(X):
            self._descend(X, y, lr, n, mask, weight)

    def _descend(
        self,
        X: Tensor,
        y: Tensor,
        lr: float,
        n: int | None,
        mask: Tensor | None,
        weight: Tensor | None,
    ) -> None:
        if len(self._groups) == 1:  # no view of anything need be made
            formulas.descend_(X, y, self.parameters, self.l2, lr, self.smoothing, mask, weight)
            return
        for some in self._groups:
            l2 = self.l2[some] if isinstance(self.l2, Tensor) else self.l2
            own = [p[some] for p in self.parameters]
            M = None if mask is None else mask[some]
            w = weight if weight is None or weight.ndim == 1 else weight[some]
            formulas.descend_(X, y, own, l2, lr, self.smoothing, M, w)


def _groups(parameters: formulas.Parameters) -> list[slice]:
    """Members that are updated together: all, or on a CPU as many as its caches hold.

    An update reads and writes weights several times. Where those of all members do not fit the
    caches, members in turn, each from its logits to its new weights, come by them once.
    """
    m = len(parameters[0])
    each = sum(p.nbytes for p in parameters) / m
    together = parameters[0].device.type != "cpu" or m * each <= CACHE
    size = m if together else max(1, int(CACHE // each))
    return [slice(start, start + size) for start in range(0, m, size)]


class SharedUpdate(FusedUpdate):
    """The update by a batch that is spread over several processes.

    The gradients are summed over the processes before the update: each ends with the same bits.
    """

    def _descend(
        self,
        X: Tensor,
        y: Tensor,
        lr: float,
        n: int | None,
        mask: Tensor | None,
        weight: Tensor | None,
    ) -> None:
        inputs, Z = formulas.forward(X, self.parameters, mask)
        G = formulas.residual(Z, y, n or samples_of_all(X), self.smoothing, weight)
        shares = formulas.gradients(G, inputs, self.parameters, self.l2 / processes(), mask)
        flat = torch.cat([share.flatten() for share in shares])
        dist.all_reduce(flat)
        sizes = [p.numel() for p in self.parameters]
        for p, gradient in zip(self.parameters, flat.split(sizes), strict=True):
            p.sub_(gradient.view_as(p), alpha=lr)


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def samples_of_all(X: Tensor) -> int:
    """Rows of a batch (n', d), summed over all processes: one message."""
    total = torch.tensor(len(X), device=X.device)
    dist.all_reduce(total)
    return int(total)


class RecordedUpdate(FusedUpdate):
    """The fused update as a CUDA graph for each shape of batch that it meets."""

    def __init__(
        self, parameters: formulas.Parameters, l2: formulas.Scalar, smoothing: float = 0.0
    ) -> None:
        super().__init__(parameters, l2, smoothing)
        self._recordings: dict[Any, _Recording] = {}

    def _descend(
        self,
        X: Tensor,
        y: Tensor,
        lr: float,
        n: int | None,
        mask: Tensor | None,
        weight: Tensor | None,
    ) -> None:
        batch = Recorded(X, y, mask, weight)
        shapes = [None if T is None else T.shape for T in batch]
        key = X.dtype, *shapes, *(p.data_ptr() for p in self.parameters)
        if key not in self._recordings:
            self._recordings[key] = _Recording(batch, self.parameters, self.l2, self.smoothing)
        self._recordings[key](batch, lr)


def has_graphs(device: torch.device) -> bool:
    """Return whether work on this device can be recorded."""
    return device.type == "cuda"


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Do the work once, and return what does it again: the same kernels on the same memory.

    It must not wait for a value of the GPU, nor read numbers that change from one time to the next
    but in tensors that stay where they are.

    Raises:
        RuntimeError: the work cannot be recorded.
    """
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    try:
        with torch.cuda.stream(side):
            work()  # what a library sets up on its first call cannot be recorded
    finally:
        here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # A stream of its own: torch's for recordings is on whichever GPU recorded first. Other threads
    # may go on using the GPU. And where recording fails, torch does not go back to where it was.
    recording = torch.cuda.graph(
        graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
    )
    with torch.cuda.stream(here), recording:
        work()
    return graph.replay


class Recorded(NamedTuple):
    """A batch with dropout's mask and the weights of its samples, if there are any."""

    X: Tensor
    y: Tensor
    mask: Tensor | None
    weight: Tensor | None


class _Recording:
    """:func:`formulas.descend_` for batches of one shape, recorded.

    Only the batch and the rate may change: they are copied to where the graph reads them. The
    recording is compared with what it recorded before it is used. Where there is none to be
    had, a warning says so, and the same update is launched kernel by kernel.
    """

    def __init__(
        self,
        batch: Recorded,
        parameters: formulas.Parameters,
        l2: formulas.Scalar,
        smoothing: float,
    ) -> None:
        X, y, *others = batch
        self.batch = Recorded(
            X.clone(), y.clone(), *(T if T is None else T.clone() for T in others)
        )
        self.lr, self.smoothing = parameters[0].new_ones(1), smoothing
        self.parameters, self.l2 = parameters, l2  # a graph does not keep what it reads
        self._replay: Callable[[], None] | None = None
        try:
            self._replay = self._recorded()
        except RuntimeError as error:
            warnings.warn(
                f"no CUDA graph of the update: {first_line(error)}. Training goes on without, "
                "kernel by kernel; cuda_graphs = False does so from the start.",
                stacklevel=3,
            )

    def __call__(self, batch: Recorded, lr: formulas.Scalar) -> None:
        for kept, new in zip(self.batch, batch, strict=True):
            if kept is not None and new is not None:
                kept.copy_(new)
        self.lr.fill_(lr)
        (self._replay or self._descend)()

    def _descend(self) -> None:
        X, y, mask, weight = self.batch
        formulas.descend_(X, y, self.parameters, self.l2, self.lr, self.smoothing, mask, weight)

    def _recorded(self) -> Callable[[], None]:
        start = [p.clone() for p in self.parameters]
        try:
            replay = record(self._descend)
            expected = [p.clone() for p in self.parameters]
            self._set(start)
            replay()
            for p, value in zip(self.parameters, expected, strict=True):
                if not torch.allclose(p, value, rtol=1e-4, atol=1e-5, equal_nan=True):
                    raise RuntimeError("what it replays is not what it recorded")
        finally:
            self._set(start)
        return replay

    def _set(self, values: Sequence[Tensor]) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.copy_(value)

"""Updates θ ← θ - η ∂J/∂θ of every member, in place.

Each kind of update consists of :func:`onelayer.core.formulas.descend_` or its parts, and is chosen
once, when a run starts. Without them a run uses autograd with torch.optim.SGD, as any
LightningModule does; tests compare the results.

On a GPU a kernel of these sizes ends before the host has launched the next one, so an update takes
as long as its dozen launches from Python. A CUDA graph records them once and launches them
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

CACHE = 2**24  # bytes of weights that a CPU's caches keep from the logits to the update


class Batch(NamedTuple):
    """A batch with dropout's mask and the weights of its samples, if there are any."""

    X: Tensor
    y: Tensor
    mask: Tensor | None
    weight: Tensor | None


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
    """The update of one process, with one GEMM per layer for gradient and update.

    Args:
        parameters: parameters (m, …), updated in place.
        l2: λ, number or (m,).
        smoothing: s of label smoothing.
    """

    def __init__(
        self, parameters: formulas.Parameters, l2: formulas.Scalar, smoothing: float = 0.0
    ) -> None:
        self.parameters, self.l2, self.smoothing = parameters, l2, smoothing
        if isinstance(l2, Tensor):  # a number if all members share it: fewer operations
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
            self._descend(Batch(X, y, mask, weight), lr, n)

    def _descend(self, batch: Batch, lr: float, n: int | None) -> None:
        X, y, mask, weight = batch
        if len(self._groups) == 1:  # no views are needed
            formulas.descend_(X, y, self.parameters, self.l2, lr, self.smoothing, mask, weight)
            return
        for some in self._groups:
            l2 = self.l2[some] if isinstance(self.l2, Tensor) else self.l2
            own = [p[some] for p in self.parameters]
            M = None if mask is None else mask[some]
            w = weight if weight is None or weight.ndim == 1 else weight[some]
            formulas.descend_(X, y, own, l2, lr, self.smoothing, M, w)


def _groups(parameters: formulas.Parameters) -> list[slice]:
    """Return slices of members that are updated together: all, or as many as a CPU's caches hold.

    An update reads and writes the weights several times. If those of all members do not fit the
    caches, members are updated in turn, so that each is read from memory once.
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

    def _descend(self, batch: Batch, lr: float, n: int | None) -> None:
        X, y, mask, weight = batch
        inputs, Z = formulas.forward(X, self.parameters, mask)
        G = formulas.residual(Z, y, n or samples_of_all(X), self.smoothing, weight)
        shares = formulas.gradients(G, inputs, self.parameters, self.l2 / processes(), mask)
        flat = torch.cat([share.flatten() for share in shares])
        dist.all_reduce(flat)
        sizes = [p.numel() for p in self.parameters]
        for p, gradient in zip(self.parameters, flat.split(sizes), strict=True):
            p.sub_(gradient.view_as(p), alpha=lr)


def processes() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def samples_of_all(X: Tensor) -> int:
    """Return the samples of a batch (n', d) over all processes, by one message."""
    total = torch.tensor(len(X), device=X.device)
    dist.all_reduce(total)
    return int(total)


class RecordedUpdate(FusedUpdate):
    """The fused update, recorded as a CUDA graph for each shape of batch."""

    def __init__(
        self, parameters: formulas.Parameters, l2: formulas.Scalar, smoothing: float = 0.0
    ) -> None:
        super().__init__(parameters, l2, smoothing)
        self._recordings: dict[Any, _Recording] = {}

    def _descend(self, batch: Batch, lr: float, n: int | None) -> None:
        shapes = [None if T is None else T.shape for T in batch]
        key = batch.X.dtype, *shapes, *(p.data_ptr() for p in self.parameters)
        if key not in self._recordings:
            self._recordings[key] = _Recording(batch, self.parameters, self.l2, self.smoothing)
        self._recordings[key](batch, lr)


def has_graphs(device: torch.device) -> bool:
    """Return whether work on this device can be recorded."""
    return device.type == "cuda"


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Do the work once, and return a function that repeats it: the same kernels on the same memory.

    The work must not wait for a value of the GPU. Numbers that change between repetitions must be
    in tensors that keep their place in memory.

    Raises:
        RuntimeError: the work cannot be recorded.
    """
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    try:
        with torch.cuda.stream(side):
            work()  # a library's set-up, on its first call, cannot be recorded
    finally:
        here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # A new stream: torch's own for recordings is on the GPU that recorded first. Other threads may
    # go on using the GPU. If recording fails, torch does not restore the current stream.
    recording = torch.cuda.graph(
        graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
    )
    with torch.cuda.stream(here), recording:
        work()
    return graph.replay


class _Recording:
    """:func:`formulas.descend_` for batches of one shape, recorded.

    Only the batch and the rate may change: they are copied to where the graph reads them. The
    recording is compared with the work that it recorded before it is used. If recording fails,
    there is a warning, and the same update is launched kernel by kernel.
    """

    def __init__(
        self,
        batch: Batch,
        parameters: formulas.Parameters,
        l2: formulas.Scalar,
        smoothing: float,
    ) -> None:
        X, y, *others = batch
        self.batch = Batch(X.clone(), y.clone(), *(T if T is None else T.clone() for T in others))
        self.lr, self.smoothing = parameters[0].new_ones(1), smoothing
        self.parameters, self.l2 = parameters, l2  # a graph does not keep the tensors it reads
        self._replay: Callable[[], None] | None = None
        try:
            self._replay = self._recorded()
        except RuntimeError as error:
            warnings.warn(
                f"no CUDA graph of the update: {first_line(error)}. Training goes on without, "
                "kernel by kernel; cuda_graphs = False does so from the start.",
                stacklevel=3,
            )

    def __call__(self, batch: Batch, lr: formulas.Scalar) -> None:
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

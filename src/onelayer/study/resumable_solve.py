"""Calls of the solver that resume after a kill, by one process or several that share samples."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onelayer.core.checks import check_same
from onelayer.core.optimum.solve import Optima, Progress, solve
from onelayer.core.update import processes
from onelayer.data.adapter import Weighted
from onelayer.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from onelayer.training.folder import AGAIN
from onelayer.training.progress import Bar

TENSORS = ("W", "b", "gap", "iterations", "cost", "stuck")


@dataclass
class Part:
    """One call of the solver: its state after the last certified round."""

    name: str
    state: Progress | None = None
    done: bool = False
    curve: list[list[float]] = field(default_factory=list)  # gaps of the members by iteration
    seconds: float = 0.0


class ResumableSolver:
    """Solves parts by name; each is saved after every certified round.

    Args:
        saved: file of the parts.
        settings: all that decides the result; compared with those of the file.
        gap: largest distance to the minimum.
        rank: number of this process.
        device: device of this process.

    Raises:
        InputError: the file has other settings.
    """

    def __init__(
        self, saved: Path, settings: Mapping[str, Any], gap: float, rank: int, device: torch.device
    ) -> None:
        self.saved, self.settings, self.gap = saved, dict(settings), gap
        self.rank, self.device = rank, device
        self.parts = self._read() if saved.is_file() else {}

    @property
    def seconds(self) -> float:
        """Time of all parts, also before a kill."""
        return sum(part.seconds for part in self.parts.values())

    def solve(
        self,
        name: str,
        samples: Weighted,
        l2: Sequence[float],
        folds: Tensor | None = None,
        start: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Optima, list[list[float]]]:
        """Return the optima of the part ``name``, and the gaps of members after each iteration."""
        part = self.parts.setdefault(name, Part(name))
        if not part.done:
            self._work_on(part, samples, l2, folds, start)
        state = part.state
        assert state is not None
        W, b, gap, iterations, cost, _ = (getattr(state, of).to(self.device) for of in TENSORS)
        fold = torch.arange(len(gap), device=self.device) // len(l2)
        λ = torch.tensor(l2, dtype=torch.float64, device=self.device).repeat(len(gap) // len(l2))
        return Optima(λ, W, b, cost, gap, iterations, fold), part.curve

    def _work_on(
        self,
        part: Part,
        samples: Weighted,
        l2: Sequence[float],
        folds: Tensor | None,
        start: tuple[Tensor, Tensor] | None,
    ) -> None:
        if part.state is not None:
            print(f"{part.name}: continues after round {part.state.round}", flush=True)
        copies = 1 if folds is None else int(folds.max()) + 1
        (X, y, weight), folds = self._shard(samples, folds)
        started, spent = time.monotonic(), part.seconds
        with Bar(part.name, len(l2) * copies, "λ", draw=self.rank == 0) as bar:

            def report(now: Progress) -> None:
                part.seconds = spent + time.monotonic() - started
                self._follow(part, now, bar)

            solve(
                X, y, l2, self.gap, weight=weight, folds=folds, start=start, state=part.state,
                shared=processes() > 1, report=report,
            )  # fmt: skip
        part.done = True
        self.save()

    def _shard(self, samples: Weighted, folds: Tensor | None) -> tuple[Weighted, Tensor | None]:
        """Return this process's samples, and their folds."""
        if processes() == 1:
            return samples, folds
        X, y, weight = samples
        mine = torch.arange(self.rank, len(y), processes(), device=self.device)
        own = Weighted(X.index_select(0, mine), y[mine], None if weight is None else weight[mine])
        return own, None if folds is None else folds[mine]

    def _follow(self, part: Part, now: Progress, bar: Bar) -> None:
        """Save the state after a round; note the gaps after an iteration."""
        if now.round is not None:
            tensors = {of: getattr(now, of).clone() for of in TENSORS}
            part.state = Progress(**tensors, round=now.round)
            self.save()
            return
        gaps = now.gap.tolist()
        part.curve.append(gaps)
        words = f"iteration {len(part.curve)}, largest gap {max(gaps):.1e}"
        bar.show(sum(gap <= self.gap for gap in gaps), lambda: words)

    def save(self) -> None:
        """Write all parts; the first process does."""
        if self.rank > 0:
            return
        tensors, parts = dict[str, Tensor](), dict[str, Any]()
        for name, part in self.parts.items():
            if part.state is not None:
                tensors |= {f"{name}.{of}": getattr(part.state, of).cpu() for of in TENSORS}
                parts[name] = {"curve": part.curve, "seconds": part.seconds, "done": part.done}
                parts[name]["round"] = part.state.round
        content = {"state_dict": tensors, "settings": self.settings, "parts": parts}
        AtomicCheckpointIO(AGAIN).save_checkpoint(content, self.saved)

    def _read(self) -> dict[str, Part]:
        content = read_checkpoint(self.saved)
        check_folder(self.saved.parents[1], self.settings, content.get("settings", {}))
        tensors, parts = content["state_dict"], dict[str, Part]()
        for name, kept in content.get("parts", {}).items():
            state = {of: tensors[f"{name}.{of}"].to(self.device) for of in TENSORS}
            progress = Progress(**state, round=int(kept["round"]))
            parts[name] = Part(name, progress, kept["done"], kept["curve"], kept["seconds"])
        return parts


def check_folder(folder: Path, here: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` if a folder has the path of other settings."""
    check_same(str(folder), here, before, "Use its settings, or another folder, --output.")


@contextmanager
def process_group() -> Iterator[int]:
    """Join the processes that torchrun has started, and yield this one's number."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or torch.distributed.is_initialized():
        yield torch.distributed.get_rank() if processes() > 1 else 0
        return
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield torch.distributed.get_rank()
    finally:
        torch.distributed.destroy_process_group()


def wait_for_all() -> None:
    """Wait until all processes are here."""
    if processes() > 1:
        torch.distributed.barrier()

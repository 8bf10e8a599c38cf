"""``onelayer solve``: the linear layer's optimum for every λ, the choice of one, its figures."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from onelayer.core.checks import check_among, check_positive, check_same, check_whole
from onelayer.core.errors import InputError
from onelayer.core.optimum.solve import Optima, Progress, check_l2, solve
from onelayer.core.update import processes
from onelayer.data.adapter import count_rows, has_split, name_of
from onelayer.data.features import Features, SomeRows
from onelayer.data.split import Standardised
from onelayer.study.data_settings import make_data, with_arguments, without_locations, write_config
from onelayer.study.plan import Candidate, choose, standard_error
from onelayer.study.plots import plot_path
from onelayer.study.runs import alone_in
from onelayer.study.tables import format_csv, format_path
from onelayer.training.checkpoint import AtomicCheckpointIO, checkpoint_of, read_checkpoint
from onelayer.training.files import atomic_write, write_json
from onelayer.training.folder import AGAIN, FOLDER, last_of
from onelayer.training.metrics import QUANTITIES, Measure
from onelayer.training.module import OneLayer
from onelayer.training.optimality import joined, learned
from onelayer.training.progress import Bar

SAVED = "rounds.ckpt"  # in the folder of checkpoints: what a stopped solve goes on from
TENSORS = ("W", "b", "gap", "iterations", "cost", "stuck")
Take = Callable[[Any, Sequence[Any]], tuple[Features, Tensor]]
"""Takes splits out of a data module: :func:`joined` as they are, :func:`learned` as to learn."""


@dataclass(frozen=True)
class Grid:
    """Which λ are solved, how exactly, and how one is chosen.

    Args:
        l2: λ; by default ``number`` of them, evenly spaced in log λ.
        l2_min: the smallest.
        l2_max: the largest.
        number: how many.
        gap: how far above the least cost a member's may be, certified in float64.
        folds: choose λ by cross-validation with so many folds of the training and validation
            images together; 0: on the validation split.
        rule: one_se, the largest λ whose accuracy is within one standard error of the best; or
            best.

    Raises:
        InputError: naming the argument and its range.
    """

    l2: list[float] | None = None
    l2_min: float = 1e-5
    l2_max: float = 1e-1
    number: int = 20
    gap: float = 1e-6
    folds: int = 0
    rule: str = "one_se"

    def __post_init__(self) -> None:
        check_positive("l2_min", self.l2_min)
        check_positive("l2_max", self.l2_max)
        if self.l2_min > self.l2_max:
            raise InputError(f"l2_min must be <= l2_max, but {self.l2_min!r} > {self.l2_max!r}.")
        check_whole("number", self.number, 1)
        check_positive("gap", self.gap)
        check_whole("folds", self.folds, 0)
        if self.folds == 1:
            raise InputError("folds must be 0, or 2 or more, not 1.")
        check_among("rule", self.rule, ("one_se", "best"))
        check_l2(self.values())

    def values(self) -> list[float]:
        """The λ, in the order as given, or from the smallest to the largest."""
        if self.l2 is not None:
            return [float(value) for value in self.l2]
        low, high = math.log10(self.l2_min), math.log10(self.l2_max)
        steps = max(self.number - 1, 1)
        return [10 ** (low + (high - low) * i / steps) for i in range(self.number)]


@dataclass
class _Part:
    """One call of the solver: its state after the last certified round, and what is drawn."""

    name: str
    state: Progress | None = None
    done: bool = False
    curve: list[list[float]] = field(default_factory=list)  # gap of each member, each iteration
    seconds: float = 0.0


@dataclass(frozen=True)
class Solve:
    """One path: everything that decides its outcome, and where it is kept.

    Args:
        grid: which λ.
        data: arguments of CIFAR10DataModule.
        output: folder for path.csv, path.png, summary.json and checkpoints/.
    """

    grid: Grid
    data: Mapping[str, Any]
    output: FilePath

    def settings(self, dataset: str) -> dict[str, Any]:
        """What a folder's summary and half-finished work are compared by."""
        return {
            "dataset": dataset,
            **asdict(self.grid),
            **{f"data.{name}": value for name, value in without_locations(self.data).items()},
        }

    def run(self) -> dict[str, Any]:
        """Solve it, or what is left of it, and return what summary.json holds.

        Raises:
            InputError: for data that have no optimum, or a folder of other settings.
        """
        with crew() as rank:
            return self._run(rank)

    def _run(self, rank: int) -> dict[str, Any]:
        data = make_data(with_arguments(self.data, batch_size=1))  # there are no batches
        if not self.grid.folds and not has_split(data, "val"):
            raise InputError("λ is chosen on a validation split: set data.val_size, or folds.")
        if verify := getattr(data, "verify_test", None):
            verify()
        settings = self.settings(name_of(data))
        self.output.mkdir(parents=True, exist_ok=True)
        with alone_in(self.output) if rank == 0 else nullcontext():
            summary = self._finished(settings)
            wait_for_all()  # before anybody writes what the others look for
            if summary is None:
                summary = _Work(self, data, settings, rank).summary()
            elif rank == 0:
                print("the path is finished: nothing was left to do.")
        if rank > 0:
            return summary
        print(f"\n{format_path(summary)}", flush=True)
        print(f"path: {self.output} (path.csv, path.png, summary.json, {FOLDER}/)", flush=True)
        return summary

    def _finished(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        try:
            kept = json.loads((self.output / "summary.json").read_text(encoding="utf-8"))
            before = kept["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self.check_same(settings, before)
        return dict(kept)

    def check_same(self, here: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        """Raise :class:`InputError` where the folder is another path's."""
        advice = "Use its settings, or another folder, --output."
        check_same(str(self.output), here, before, advice)


class _Work:
    """The parts of a solve in turn: the path, the choice, the network refitted, its figures."""

    def __init__(self, asked: Solve, data: Any, settings: dict[str, Any], rank: int = 0) -> None:
        self.rank, self.processes = rank, processes()
        self.asked, self.grid, self.data, self.settings = asked, asked.grid, data, settings
        self.l2 = asked.grid.values()
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        self.saved = asked.output / FOLDER / SAVED
        self.parts = self._saved_parts()
        data.setup("fit")

    def summary(self) -> dict[str, Any]:
        """Everything, in order; the test split is read last."""
        path, model, candidates, curve = self._by_folds() if self.grid.folds else self._by_split()
        best, one_se, chosen = (choose(candidates, r) for r in ("best", "one_se", self.grid.rule))
        at = chosen.index
        final, network = self._refit(path, at, model)
        rows = self._rows(path, model, candidates)
        tested = has_split(self.data, "test")
        test = self._figures(network, self._tensors(["test"]))[0] if tested else None
        summary = {
            "settings": self.settings,
            "dataset": self.name,
            "hidden": 0,
            "seconds": round(sum(part.seconds for part in self.parts.values()), 3),
            "rule": self.grid.rule,
            "best": best.row(),
            "one_se": one_se.row(),
            "l2": chosen.l2,
            "members": rows,
            "final": {
                "l2": chosen.l2,
                "cost": float(final.cost[0 if len(final.l2) == 1 else at]),
                "gap": float(final.gap[0 if len(final.l2) == 1 else at]),
                "train and val": self._figures(network, self._tensors(["train", "val"]))[0],
                **({} if test is None else {"test": test}),
            },
        }
        if self.rank == 0:
            folder = self.asked.output
            atomic_write(folder / "path.csv", format_csv(rows))
            plot_path(rows, curve, chosen.l2, self.grid.gap, folder / "path.png", self.name)
            write_config(folder, {"data": self.asked.data})
            write_json(folder / "summary.json", summary)
            self.saved.unlink(missing_ok=True)
        return summary

    @property
    def name(self) -> str:
        return name_of(self.data)

    # ---- the parts

    def _by_split(self) -> tuple[Optima, OneLayer, list[Candidate], list[list[float]]]:
        """The path of the training split, and each λ's accuracy on validation."""
        path, curve = self._solve("path", self._tensors(["train"], learned))
        model = self._network(path)
        figures = self._figures(model, self._tensors(["val"]))
        model.validation = {q: [member[q] for member in figures] for q in QUANTITIES}
        self._write(model, "path.ckpt")
        images = count_rows(self.data, "val")
        accuracies = model.validation["accuracy"]
        return path, model, _candidates(self.l2, [[p] for p in accuracies], images), curve

    def _by_folds(self) -> tuple[Optima, OneLayer, list[Candidate], list[list[float]]]:
        """Each λ's accuracy on the folds left out, and the path of all rows."""
        X, y = self._tensors(["train", "val"])
        folds = stratified(y.cpu(), self.grid.folds, getattr(self.data, "seed", 0)).to(y.device)
        pair = self._tensors(["train", "val"], learned)
        copies = len(pair[1]) // len(y)  # a mirrored image is in the fold of the image
        path, _ = self._solve("folds", pair, folds=folds.repeat(copies))
        accuracies: list[list[float]] = [[] for _ in self.l2]
        losses: list[list[float]] = [[] for _ in self.l2]
        for fold in range(self.grid.folds):
            rows, mine = (folds == fold).nonzero().squeeze(1), path.fold == fold
            measure = Measure(len(self.l2)).to(self.device)
            measure.update(SomeRows(X, rows), y[rows], [path.W[mine].float(), path.b[mine].float()])
            for name, found in (("accuracy", accuracies), ("loss", losses)):
                for one, value in zip(found, measure.compute()[name].reshape(-1), strict=True):
                    one.append(float(value))
        shape = (self.grid.folds, len(self.l2), *path.W.shape[1:])
        start = path.W.view(shape).mean(0), path.b.view(shape[:-1]).mean(0)
        whole, curve = self._solve("path", pair, start=start)
        model = self._network(whole, ["train", "val"])
        loss, accuracy = ([statistics.fmean(v) for v in found] for found in (losses, accuracies))
        penalties = [l2 * float(W.square().sum()) for l2, W in zip(self.l2, whole.W, strict=True)]
        cost = [a + b for a, b in zip(loss, penalties, strict=True)]
        model.validation = {"cost": cost, "loss": loss, "accuracy": accuracy}
        self._write(model, "path.ckpt")
        return whole, model, _candidates(self.l2, accuracies, len(y)), curve

    def _refit(self, path: Optima, at: int, model: OneLayer) -> tuple[Optima, OneLayer]:
        """The chosen λ over training and validation images together, as last.ckpt."""
        final = path
        start = path.W[at : at + 1], path.b[at : at + 1]
        if not self.grid.folds:
            pair = self._tensors(["train", "val"], learned)
            final, _ = self._solve("refit", pair, l2=[self.l2[at]], start=start)
            start = final.W, final.b
        network = OneLayer(l2=self.l2[at], inputs=model.inputs, classes=model.outputs)
        self._fill(network, *start, ["train", "val"])
        self._write(network, last_of(self.asked.output).name)
        return final, network

    def _solve(
        self,
        name: str,
        pair: tuple[Features, Tensor],
        l2: Sequence[float] | None = None,
        folds: Tensor | None = None,
        start: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Optima, list[list[float]]]:
        """One call of the solver, with its progress bar, from the last pass saved."""
        part = self.parts.setdefault(name, _Part(name))
        l2 = list(l2 or self.l2)
        if not part.done:
            self._work_on(part, pair, l2, folds, start)
        state = part.state
        assert state is not None
        W, b, gap, iterations, cost, _ = (getattr(state, of).to(self.device) for of in TENSORS)
        fold = torch.arange(len(gap), device=self.device) // len(l2)
        λ = torch.tensor(l2, device=self.device).double().repeat(len(gap) // len(l2))
        return Optima(λ, W, b, cost, gap, iterations, fold), part.curve

    def _work_on(
        self,
        part: _Part,
        pair: tuple[Features, Tensor],
        l2: list[float],
        folds: Tensor | None,
        start: tuple[Tensor, Tensor] | None,
    ) -> None:
        if part.state is not None:
            print(f"{part.name}: continues after round {part.state.round}", flush=True)
        X, y, folds = self._share(*pair, folds)
        members = len(l2) * (1 if folds is None else self.grid.folds)
        with Bar(part.name, members, "λ", draw=self.rank == 0) as bar:
            watch = _Watch(self, part, bar)
            solve(
                X, y, l2, self.grid.gap, folds=folds, start=start, state=part.state,
                shared=self.processes > 1, report=watch,
            )  # fmt: skip
        part.done = True
        watch.save()

    def _share(
        self, X: Features, y: Tensor, folds: Tensor | None
    ) -> tuple[Features, Tensor, Tensor | None]:
        """This process's rows."""
        if self.processes == 1:
            return X, y, folds
        mine = torch.arange(self.rank, len(y), self.processes, device=self.device)
        return X.index_select(0, mine), y[mine], None if folds is None else folds[mine]

    # ---- networks and figures

    def _tensors(self, splits: Sequence[Any], of: Take = joined) -> tuple[Features, Tensor]:
        if splits == ["test"]:
            self.data.setup("test")
        X, y = of(self.data, splits)
        return X.to(self.device), y.to(self.device)

    def _network(self, path: Optima, learned_from: Sequence[str] = ("train",)) -> OneLayer:
        _, k, d = path.W.shape
        model = OneLayer(l2=self.l2, inputs=d, classes=k)
        return self._fill(model, path.W, path.b, learned_from)

    def _fill(self, model: OneLayer, W: Tensor, b: Tensor, learned_from: Sequence[str]) -> OneLayer:
        with torch.no_grad():
            for parameter, value in zip(model.weights, (W, b), strict=True):
                parameter.copy_(value)
            if isinstance(self.data, Standardised):
                model.mean.copy_(self.data.statistics.mean)
                model.std.copy_(self.data.statistics.std)
        model.learned_from = list(learned_from)
        return model.to(self.device)

    def _figures(self, model: OneLayer, pair: tuple[Features, Tensor]) -> list[dict[str, float]]:
        found = model.evaluate(*pair)
        values = zip(*(found[name].tolist() for name in QUANTITIES), strict=True)
        return [dict(zip(QUANTITIES, numbers, strict=True)) for numbers in values]

    def _rows(
        self, path: Optima, model: OneLayer, candidates: Sequence[Candidate]
    ) -> list[dict[str, Any]]:
        """As path.csv has them, a row for each λ."""
        learned = ["train", "val"] if self.grid.folds else ["train"]
        train = self._figures(model, self._tensors(learned))
        return [
            {
                "l2": l2,
                "cost": float(path.cost[i]),
                "gap": float(path.gap[i]),
                "iterations": int(path.iterations[i]),
                "train_loss": train[i]["loss"],
                "train_accuracy": train[i]["accuracy"],
                "val_accuracy": candidates[i].mean,
                "val_error": candidates[i].error,
            }
            for i, l2 in enumerate(self.l2)
        ]

    def _write(self, model: OneLayer, name: str) -> None:
        """An ordinary checkpoint of networks, with what their data were."""
        if self.rank > 0:
            return
        content = checkpoint_of(model, self.data)
        AtomicCheckpointIO(AGAIN).save_checkpoint(content, self.asked.output / FOLDER / name)

    # ---- what a kill leaves

    def save(self) -> None:
        """Keep what every part has found."""
        if self.rank > 0:
            return
        states = {part.name: part.state for part in self.parts.values() if part.state is not None}
        tensors = {
            f"{name}.{of}": getattr(state, of).cpu()
            for name, state in states.items()
            for of in TENSORS
        }
        others = {
            name: {
                "curve": self.parts[name].curve,
                "seconds": self.parts[name].seconds,
                "done": self.parts[name].done,
                "round": state.round,
            }
            for name, state in states.items()
        }
        content = {"state_dict": tensors, "settings": self.settings, "parts": others}
        AtomicCheckpointIO(AGAIN).save_checkpoint(content, self.saved)

    def _saved_parts(self) -> dict[str, _Part]:
        if not self.saved.is_file():
            return {}
        content = read_checkpoint(self.saved)
        self.asked.check_same(self.settings, content.get("settings", {}))
        tensors = content["state_dict"]
        return {
            name: _Part(
                name,
                Progress(
                    **{of: tensors[f"{name}.{of}"].to(self.device) for of in TENSORS},
                    round=int(kept["round"]),
                ),
                bool(kept["done"]),
                [list(map(float, gaps)) for gaps in kept["curve"]],
                float(kept["seconds"]),
            )
            for name, kept in content.get("parts", {}).items()
        }


class _Watch:
    """Follows a solve: the bar, the curve of gaps, and the state saved after each round."""

    def __init__(self, work: _Work, part: _Part, bar: Any) -> None:
        self.work, self.part, self.bar = work, part, bar
        self.started, self.spent = time.monotonic(), part.seconds

    def __call__(self, now: Progress) -> None:
        if now.round is not None:
            tensors = {of: getattr(now, of).clone() for of in TENSORS}
            self.part.state = Progress(**tensors, round=now.round)
            self.save()
            return
        gaps = now.gap.tolist()
        self.part.curve.append(gaps)
        words = f"iteration {len(self.part.curve)}, largest gap {max(gaps):.1e}"
        done = sum(gap <= self.work.grid.gap for gap in gaps)
        self.bar.show(done, lambda: words)

    def save(self) -> None:
        self.part.seconds = self.spent + time.monotonic() - self.started
        self.work.save()


@contextmanager
def crew() -> Iterator[int]:
    """This process's number among those that torchrun has started; they share the rows."""
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


def stratified(y: Tensor, folds: int, seed: int = 0) -> Tensor:
    """A fold (n,) for each row, at random: of every class each fold has as many as the others.

    >>> stratified(torch.tensor([0, 0, 1, 1]), 2).view(2, 2).sum(1).tolist()
    [1, 1]
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    by_class = order[y[order].argsort(stable=True)]
    result = torch.empty_like(y)
    result[by_class] = torch.arange(len(y)) % folds
    return result


def _candidates(
    l2: Sequence[float], accuracies: Sequence[Sequence[float]], images: int
) -> list[Candidate]:
    """Mean accuracy of each λ and its standard error: of the images, or between the folds."""
    result = []
    for index, values in enumerate(accuracies):
        mean = statistics.fmean(values)
        error = standard_error(values, images)
        if len(values) > 1:  # Hastie et al., The Elements of Statistical Learning, section 7.10
            error = statistics.stdev(values) / math.sqrt(len(values))
        result.append(Candidate(1, index, l2[index], mean, error, len(values)))
    return result

"""``onelayer solve``: the linear network's optimum for every λ, the choice of one, its results."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onelayer.core.checks import check_among, check_positive, check_whole
from onelayer.core.class_weight import ClassWeight, learn_class_weights
from onelayer.core.errors import InputError
from onelayer.core.optimum.population import check_l2
from onelayer.core.optimum.solve import Optima
from onelayer.data.adapter import Weighted, count_rows, has_split, name_of, shape_of, verify
from onelayer.data.features import SomeRows
from onelayer.data.split import Standardised
from onelayer.study.comparison_figures import plot_path
from onelayer.study.data_settings import make_data, with_arguments, without_locations, write_config
from onelayer.study.figures import plot_weights
from onelayer.study.formatting import format_csv, format_path
from onelayer.study.plan import Candidate, choose, standard_error
from onelayer.study.resumable_solve import (
    ResumableSolver,
    check_folder,
    process_group,
    wait_for_all,
)
from onelayer.study.run import alone_in
from onelayer.training.checkpoint import AtomicCheckpointIO, checkpoint_of
from onelayer.training.files import atomic_write, write_json
from onelayer.training.folder import AGAIN, FOLDER, last_of
from onelayer.training.metrics import Measure
from onelayer.training.module import OneLayer
from onelayer.training.optimality import joined, learned
from onelayer.training.records import quantities
from onelayer.training.trainer import device_of

SAVED = "rounds.ckpt"  # state of a stopped solve, in the folder of checkpoints
Read = Callable[[Any, Sequence[Any]], Weighted]
"""Reads splits of a data module: :func:`joined` as they are, :func:`learned` with mirror images."""


@dataclass(frozen=True)
class Grid:
    """The λ to solve, the exactness, and the rule of the choice.

    Args:
        l2: values of λ; by default ``number`` of them, evenly spaced in log λ.
        l2_min: smallest λ.
        l2_max: largest λ.
        number: number of λ.
        gap: largest distance of a member's cost to the minimum, certified in float64.
        folds: folds of the training and validation samples together, to choose λ by
            cross-validation; 0 to choose it on the validation split.
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
        check_positive("solve.l2_min", self.l2_min)
        check_positive("solve.l2_max", self.l2_max)
        if self.l2_min > self.l2_max:
            raise InputError(
                f"solve.l2_min must be <= solve.l2_max, but {self.l2_min!r} > {self.l2_max!r}."
            )
        check_whole("solve.number", self.number, 1)
        check_positive("solve.gap", self.gap)
        check_whole("solve.folds", self.folds, 0)
        if self.folds == 1:
            raise InputError("solve.folds must be 0, or 2 or more, not 1.")
        check_among("solve.rule", self.rule, ("one_se", "best"))
        check_l2(self.values())

    def values(self) -> list[float]:
        """Return the λ in the order given, or from the smallest to the largest."""
        if self.l2 is not None:
            return [float(value) for value in self.l2]
        low, high = math.log10(self.l2_min), math.log10(self.l2_max)
        steps = max(self.number - 1, 1)
        return [10 ** (low + (high - low) * i / steps) for i in range(self.number)]


@dataclass(frozen=True)
class Solve:
    """A path of λ: everything that decides its outcome, and where it is kept.

    Args:
        grid: the λ.
        data: settings of the data.
        output: folder for path.csv, path.png, summary.json and checkpoints/.
        class_weight: weights of the classes, as those of a OneLayer.
        trainer: flags of the Trainer that choose the device: accelerator and devices.
    """

    grid: Grid
    data: Mapping[str, Any]
    output: Path
    class_weight: ClassWeight = None
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Solve the path, or the rest of it, and return the content of summary.json.

        Raises:
            InputError: for data that have no optimum, or a folder of other settings.
        """
        with process_group() as rank:
            return self._run(rank)

    def _run(self, rank: int) -> dict[str, Any]:
        data = make_data(with_arguments(self.data, batch_size=1))  # there are no batches
        if not self.grid.folds and not has_split(data, "val"):
            raise InputError(
                "λ is chosen on a validation split: set data.val_size, or solve.folds."
            )
        verify(data)
        locations = without_locations(self.data)
        settings = {"dataset": name_of(data), **asdict(self.grid)}
        settings |= {f"data.{name}": value for name, value in locations.items()}
        if self.class_weight is not None:
            settings["class_weight"] = self.class_weight
        self.output.mkdir(parents=True, exist_ok=True)
        with alone_in(self.output) if rank == 0 else nullcontext():
            summary = self._finished(settings)
            wait_for_all()  # before any process writes what the others look for
            if summary is None:
                summary = _Work(self, data, settings, rank).summary()
            elif rank == 0:
                print("the path is finished: nothing was left to do.")
        if rank == 0:
            print(f"\n{format_path(summary)}", flush=True)
            left = f"path.csv, path.png, summary.json, {FOLDER}/"
            print(f"path: {self.output} ({left})", flush=True)
        return summary

    def _finished(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        try:
            kept = json.loads((self.output / "summary.json").read_text(encoding="utf-8"))
            before = kept["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        check_folder(self.output, settings, before)
        return dict(kept)


class _Work:
    """The parts of a solve in turn: the path, the choice, the network refitted, its results."""

    def __init__(self, asked: Solve, data: Any, settings: dict[str, Any], rank: int = 0) -> None:
        self.grid, self.data, self.settings, self.rank = asked.grid, data, settings, rank
        self.l2, self.folder = asked.grid.values(), asked.output
        saved = self.folder / FOLDER / SAVED
        device = device_of(asked.trainer)
        self.solver = ResumableSolver(saved, settings, asked.grid.gap, rank, device)
        self.data_settings, self.class_weight = asked.data, asked.class_weight
        data.setup("fit")

    def summary(self) -> dict[str, Any]:
        """Solve, choose and refit; read the test split last."""
        path, model, candidates, curve = self._by_folds() if self.grid.folds else self._by_split()
        best, one_se, chosen = (choose(candidates, r) for r in ("best", "one_se", self.grid.rule))
        final, network = self._refit(path, chosen.index, model)
        rows, refitted = self._rows(path, model, candidates), final.l2.tolist().index(chosen.l2)
        splits = {"train and val": ["train", "val"]}
        splits |= {"test": ["test"]} if has_split(self.data, "test") else {}
        measured = {k: self._measure(network, self._tensors(s))[0] for k, s in splits.items()}
        summary = {
            "settings": self.settings,
            "dataset": name_of(self.data),
            "hidden": 0,
            "seconds": round(self.solver.seconds, 3),
            "rule": self.grid.rule,
            "best": best.row(),
            "one_se": one_se.row(),
            "l2": chosen.l2,
            "members": rows,
            "final": {
                "l2": chosen.l2,
                "cost": float(final.cost[refitted]),
                "gap": float(final.gap[refitted]),
                **measured,
            },
        }
        if self.rank == 0:
            figure, name = self.folder / "path.png", name_of(self.data)
            atomic_write(self.folder / "path.csv", format_csv(rows))
            plot_path(rows, curve, chosen.l2, self.grid.gap, figure, name)
            plot_weights(network, self.folder / "weights.png")
            write_config(self.folder, {"data": self.data_settings})
            write_json(self.folder / "summary.json", summary)
            self.solver.saved.unlink(missing_ok=True)
        return summary

    # ---- the parts

    def _by_split(self) -> tuple[Optima, OneLayer, list[Candidate], list[list[float]]]:
        """Solve the training split's path, and measure each λ on validation."""
        path, curve = self.solver.solve("path", self._tensors(["train"], learned), self.l2)
        model = self._network(path)
        measured = self._measure(model, self._tensors(["val"]))
        names = quantities(measured[0])
        model.validation = {q: [member[q] for member in measured] for q in names}
        self._write(model, "path.ckpt")
        images = count_rows(self.data, "val")
        accuracies = [[p] for p in model.validation["accuracy"]]
        return path, model, _candidates(self.l2, model.validation, accuracies, images), curve

    def _by_folds(self) -> tuple[Optima, OneLayer, list[Candidate], list[list[float]]]:
        """Measure each λ on the folds left out, and solve the path of all samples."""
        X, y, weight = self._tensors(["train", "val"])
        folds = stratified(y.cpu(), self.grid.folds, getattr(self.data, "seed", 0)).to(y.device)
        samples = self._tensors(["train", "val"], learned)
        copies = len(samples.y) // len(y)  # a mirrored image is in the fold of the image
        path, _ = self.solver.solve("folds", samples, self.l2, folds=folds.repeat(copies))
        measured = []
        for fold in range(self.grid.folds):
            rows, mine = (folds == fold).nonzero().squeeze(1), path.fold == fold
            classes = 0 if self.class_weight is None else path.W.shape[1]
            measure = Measure(len(self.l2), classes).to(self.solver.device)
            w, weights = None if weight is None else weight[rows], (path.W[mine], path.b[mine])
            measure.update(SomeRows(X, rows), y[rows], [T.float() for T in weights], w)
            measured.append(measure.compute())
        by_fold = {
            name: [
                [float(found[name].reshape(-1)[i]) for found in measured]
                for i in range(len(self.l2))
            ]
            for name in measured[0]
        }
        shape = (self.grid.folds, len(self.l2), *path.W.shape[1:])
        start = path.W.view(shape).mean(0), path.b.view(shape[:-1]).mean(0)
        whole, curve = self.solver.solve("path", samples, self.l2, start=start)
        model = self._network(whole, ["train", "val"])
        means = {name: [statistics.fmean(v) for v in found] for name, found in by_fold.items()}
        penalties = [l2 * float(W.square().sum()) for l2, W in zip(self.l2, whole.W, strict=True)]
        cost = [a + b for a, b in zip(means["loss"], penalties, strict=True)]
        model.validation = {"cost": cost, **means}
        self._write(model, "path.ckpt")
        accuracies = by_fold["accuracy"]
        return whole, model, _candidates(self.l2, model.validation, accuracies, len(y)), curve

    def _refit(self, path: Optima, at: int, model: OneLayer) -> tuple[Optima, OneLayer]:
        """Refit the chosen λ on training and validation samples, and write last.ckpt."""
        final, start = path, (path.W[at : at + 1], path.b[at : at + 1])
        if not self.grid.folds:
            samples = self._tensors(["train", "val"], learned)
            final, _ = self.solver.solve("refit", samples, [self.l2[at]], start=start)
            start = final.W, final.b
        network = self._made(self.l2[at], model.outputs, model.inputs)
        self._fill(network, *start, ["train", "val"])
        self._write(network, last_of(self.folder).name)
        return final, network

    # ---- networks and their results

    def _tensors(self, splits: Sequence[Any], read: Read = joined) -> Weighted:
        """Return samples of splits, whose weights are multiplied by those of their classes."""
        if splits == ["test"]:
            self.data.setup("test")
        X, y, weight = read(self.data, splits)
        y = y.to(self.solver.device)
        weight = None if weight is None else weight.to(y.device)
        if self.class_weight is not None:
            of_class = self._class_weights.to(y.device, torch.float32)[y]
            weight = of_class if weight is None else of_class * weight
        return Weighted(X.to(y.device), y, weight)

    @cached_property
    def _class_weights(self) -> Tensor:
        _, y, weight = joined(self.data, ["train"])
        return learn_class_weights(self.class_weight, self.data.classes, y, weight)

    def _made(self, l2: Any, k: int, d: int) -> OneLayer:
        given = self.class_weight
        kept = dict(given) if isinstance(given, Mapping) else given
        model = OneLayer(l2=l2, inputs=d, classes=k, class_weight=kept)
        if kept is not None:
            model.class_weights = self._class_weights.to(model.weights[0])
        return model

    def _network(self, path: Optima, learned_from: Sequence[str] = ("train",)) -> OneLayer:
        _, k, d = path.W.shape
        return self._fill(self._made(self.l2, k, d), path.W, path.b, learned_from)

    def _fill(self, model: OneLayer, W: Tensor, b: Tensor, learned_from: Sequence[str]) -> OneLayer:
        with torch.no_grad():
            for parameter, value in zip(model.weights, (W, b), strict=True):
                parameter.copy_(value)
            if isinstance(self.data, Standardised):
                model.mean.copy_(self.data.statistics.mean)
                model.std.copy_(self.data.statistics.std)
        model.learned_from = list(learned_from)
        model.samples = {"shape": shape_of(self.data)}
        return model.to(self.solver.device)

    def _measure(self, model: OneLayer, samples: Weighted) -> list[dict[str, float]]:
        measure = model.new_measure().to(self.solver.device)
        measure.update(samples.X, samples.y, model.weights, samples.weight)
        found = model.figures(measure)
        names = quantities(found)
        values = zip(*(found[name].tolist() for name in names), strict=True)
        return [dict(zip(names, numbers, strict=True)) for numbers in values]

    def _rows(
        self, path: Optima, model: OneLayer, candidates: Sequence[Candidate]
    ) -> list[dict[str, Any]]:
        """Return the rows of path.csv, one for each λ."""
        train = self._measure(model, self._tensors(model.learned_from))
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
                **self._balanced(train[i], model.validation, i),
            }
            for i, l2 in enumerate(self.l2)
        ]

    @staticmethod
    def _balanced(train: Mapping[str, float], val: Any, i: int) -> dict[str, float]:
        """Return the balanced accuracies of a λ; none without class weights."""
        if "balanced_accuracy" not in train:
            return {}
        name = "balanced_accuracy"
        return {f"train_{name}": train[name], f"val_{name}": val[name][i]}

    def _write(self, model: OneLayer, name: str) -> None:
        """Write an ordinary checkpoint; the first process does."""
        if self.rank == 0:
            content = checkpoint_of(model, self.data)
            AtomicCheckpointIO(AGAIN).save_checkpoint(content, self.folder / FOLDER / name)


def stratified(y: Tensor, folds: int, seed: int = 0) -> Tensor:
    """Return a random fold (n,) for each sample; folds have equal shares of every class.

    >>> stratified(torch.tensor([0, 0, 1, 1]), 2).view(2, 2).sum(1).tolist()
    [1, 1]
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    by_class = order[y[order].argsort(stable=True)]
    result = torch.empty_like(y)
    result[by_class] = torch.arange(len(y)) % folds
    return result


def _candidates(
    l2: Sequence[float],
    means: Mapping[str, Sequence[float]],
    accuracies: Sequence[Sequence[float]],
    images: int,
) -> list[Candidate]:
    """Return mean accuracy, standard error and loss of each λ, by its accuracy on each fold."""
    result = []
    for index, values in enumerate(accuracies):
        error = standard_error(values, images)
        if len(values) > 1:  # Hastie et al., The Elements of Statistical Learning, section 7.10
            error = statistics.stdev(values) / math.sqrt(len(values))
        mean, loss = means["accuracy"][index], means["loss"][index]
        result.append(Candidate(1, index, l2[index], mean, error, len(values), loss=loss))
    return result

"""Results: what a run ends with, as summary.json and a table."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from onelayer.core.checks import check_number, check_whole
from onelayer.data.adapter import batches, has_loader, name_of
from onelayer.data.split import Splits
from onelayer.training.blocks import overridden
from onelayer.training.choice import by_l2, ends_of
from onelayer.training.ensembles import ensembles_of
from onelayer.training.files import atomic_write
from onelayer.training.folder import run_folder
from onelayer.training.measure import QUANTITIES
from onelayer.training.observer import Observer, observers, others
from onelayer.training.population import Population
from onelayer.training.records import Row, last_figures, restored_rows
from onelayer.training.text import table

SPLITS = ("train", "val", "test")


class Results(Observer):
    """Collects each member's final figures and writes summary.json in the run's folder.

    Where several networks have one λ, those of their ensemble, too: the mean of their class
    probabilities on the validation split when a fit has ended, and on the test split.

    ``summary`` is None until a fit has ended; the test figures join it when ``trainer.test``
    follows. A run that had all of it, and was resumed all the same, keeps what it has: then
    ``finished`` is true, and there is nothing to test.
    """

    logs_test_figures = True

    def __init__(self) -> None:
        self.summary: dict[str, Any] | None = None
        self.finished, self._trained = False, False
        self._figures: list[Row] = []  # of each split, measured last
        self._returned: list[dict[str, Any]] = []  # by trainer.test, a dict for each loader
        self._seconds = 0.0
        self._started = 0.0

    def __repr__(self) -> str:
        """How much there is; ``print`` shows the whole table."""
        if self.summary is None:
            return "Results(no training run has ended)"
        networks, tested = len(self.summary["members"]), "test" in self.summary["members"][0]
        return (
            f"Results({networks} network{'s' * (networks > 1)}, {self.summary['steps']} updates, "
            f"{'tested' if tested else 'not tested'})"
        )

    def __str__(self) -> str:
        return "no training run has ended" if self.summary is None else format_summary(self.summary)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a checkpoint's figures of other networks than these."""
        for row in self._figures:
            members = len(cast(Any, pl_module).members)
            check_whole("a network's number in the checkpoint's curves", row.member, 0, members - 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started, self._trained = time.monotonic(), True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock, when a GPU has done all that it was given."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._seconds, self._started = self._total(), 0.0

    def _total(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started else 0.0)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The summary of training and validation."""
        kept = _read_summary(run_folder(trainer))
        if not self._trained and kept is not None and kept["steps"] == trainer.global_step:
            self.summary, self.finished = kept, True
            return
        module = cast(Any, pl_module)
        members: list[dict[str, Any]] = [m.named() for m in module.members]
        for row in self._figures:
            if row.split != "test":
                _enter(members[row.member], row)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data is None and module.validated_at == trainer.global_step:  # by Lightning's loader
            _enter_all(members, "val", module, module.validation)
        self.summary = {
            "dataset": "custom" if data is None else name_of(data),
            "hidden": module.hidden,
            "steps": trainer.global_step,
            "seconds": round(self._seconds, 3),
            "members": members,
        }
        for networks in _all_networks(trainer, module):
            _enter_ensembles(self.summary, _on_validation(trainer, networks))
        self._write(trainer)

    def on_measured(self, trainer: Trainer, pl_module: LightningModule, rows: list[Row]) -> None:
        """Keep the latest figures; those of a test join the summary of the fit before."""
        self._figures = [row for split in SPLITS for row in last_figures(rows, split)]
        if rows[-1].split != "test" or self.summary is None or self.finished:
            return
        for row in last_figures(rows, "test"):
            _enter(self.summary["members"][row.member], row)
        for networks in _all_networks(trainer, pl_module):
            _enter_ensembles(self.summary, ensembles_of(networks, "test"))
        self._write(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what ``trainer.test`` is about to return."""
        self._returned = trainer.test_loop._logged_outputs

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let ``trainer.test`` return and print the figures that its loggers get from here."""
        names = [f"test/{name}" for name in QUANTITIES]
        metrics = trainer.callback_metrics
        for returned in self._returned:
            returned.update({name: metrics[name] for name in names if name in metrics})
        self._returned = []

    def _write(self, trainer: Trainer) -> None:
        assert self.summary is not None
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        for logger in others(trainer):
            logger.log_metrics(self._test_figures(trainer), self.summary["steps"])
        for observer in observers(trainer):
            observer.on_summary(trainer, self.summary)
        # Last: a run whose summary has test figures is finished, and never goes on.
        write_json(folder / "summary.json", self.summary)

    def _test_figures(self, trainer: Trainer) -> dict[str, float]:
        """Those of the λ that is best on validation, where there are any."""
        assert self.summary is not None
        chosen = cast(Any, trainer.lightning_module).choose("best").members
        members = [self.summary["members"][m] for m in chosen]
        return {
            f"test/{name}": statistics.fmean(values)
            for name in QUANTITIES
            if (values := collect(members, "test", name))
        }

    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far, and the latest figures."""
        return {"seconds": self._total(), "rows": [tuple(row) for row in self._figures]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the clock and the figures of the run that is resumed."""
        check_number("the checkpoint's seconds", state_dict.get("seconds"))
        self._seconds = state_dict["seconds"]
        self._figures = restored_rows(state_dict.get("rows"))


def _enter(member: dict[str, Any], row: Row) -> None:
    """Enter a split's figures; JSON knows neither NaN nor infinity: null is what diverged."""
    figures = row._asdict()
    member[row.split] = {
        name: figures[name] if math.isfinite(figures[name]) else None for name in QUANTITIES
    }
    if None in member[row.split].values():
        member["diverged"] = True


def _enter_ensembles(summary: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """Enter the figures of ensembles beside those of other splits; without any, nothing."""
    kept = {_which(one): one for one in summary.get("ensembles", [])}
    for one in found:
        kept[_which(one)] = kept.get(_which(one), {}) | one
    if kept:
        summary["ensembles"] = list(kept.values())


def _which(ensemble: dict[str, Any]) -> tuple[Any, ...]:
    return ensemble["l2"], _kind(ensemble)


def _all_networks(trainer: Trainer, module: LightningModule) -> list[LightningModule]:
    """The module, and what observers have kept of its training."""
    return [module, *(n for o in observers(trainer) for n in o.networks(trainer, module))]


def _on_validation(trainer: Trainer, module: Any) -> list[dict[str, Any]]:
    """The figures of ensembles on the whole validation split, as Curves measures it."""
    data, measure = trainer.datamodule, module.ensembles  # type: ignore[attr-defined]
    measure.reset()
    if not measure.wanted or data is None:
        return []
    W = module.weights[0]
    if isinstance(data, Splits):
        pairs: Any = [pair] if (pair := data.tensors("val")) is not None else []
    elif has_loader(data, "val") and not overridden(module, ("validation_step",)):
        pairs = ((X.to(W.dtype), y) for X, y in batches(data, "val"))
    else:
        return []
    with torch.no_grad(), isolate_rng():  # a loader may shuffle
        for X, y in pairs:
            measure.update(X.to(W.device), y.to(W.device), module.weights)
    return ensembles_of(module, "val")


def members_with(module: Population, split: str, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Each member with its figures (m,) over a split, as in summary.json."""
    members: list[dict[str, Any]] = [member.named() for member in module.members]
    _enter_all(members, split, module, {name: figures[name].tolist() for name in QUANTITIES})
    return members


def _enter_all(
    members: list[dict[str, Any]], split: str, module: Population, figures: dict[str, list[float]]
) -> None:
    """Enter each member's figures over a split."""
    values = zip(*(figures[name] for name in QUANTITIES), strict=True)
    for i, (member, numbers) in enumerate(zip(module.members, values, strict=True)):
        _enter(members[i], Row(0, split, i, member.l2, member.seed, math.nan, *numbers))


def collect(members: Sequence[dict[str, Any]], split: str, name: str) -> list[float]:
    """One figure of every member that has it and has not diverged."""
    return [m[split][name] for m in members if split in m and not m.get("diverged")]


def _read_summary(folder: Path | None) -> dict[str, Any] | None:
    """The summary.json that an earlier process left, if it has test figures."""
    if folder is None or not (path := folder / "summary.json").is_file():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return summary if all("test" in member for member in summary["members"]) else None
    except (ValueError, KeyError, TypeError):  # damaged: made anew
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    atomic_write(path, json.dumps(content, indent=2) + "\n")


def format_summary(summary: dict[str, Any]) -> str:
    """The closing table: a line per λ, mean ± standard deviation over the seeds not diverged."""
    count = len(summary["members"])
    head = (
        f"{network_name(summary['hidden'])}, {summary['dataset']}, {summary['steps']} updates in "
        f"{summary['seconds']:.1f} s, {count} network{'s' * (count > 1)}; accuracy in %"
    )

    def cells(members: Sequence[dict[str, Any]]) -> list[str]:
        accuracies = [_mean_std(collect(members, split, "accuracy"), 100) for split in SPLITS]
        return [*accuracies, *(_mean(collect(members, "val", name)) for name in ("cost", "loss"))]

    def of_ensemble(one: dict[str, Any]) -> list[str]:
        loss = one["val"]["loss"] if "val" in one else None
        return ["-", *(_share(one, s) for s in SPLITS[1:]), "-", _mean([loss] if loss else [])]

    columns = [*SPLITS, "val cost", "val loss"]
    ensembles = summary.get("ensembles", [])
    lines = _lines(columns, summary["members"], ensembles, cells, of_ensemble)
    return "\n".join([head, *lines, *_unmeasured(summary)])


def _unmeasured(summary: dict[str, Any]) -> Iterator[str]:
    """Say why splits have no figures, where the trainer was given loaders."""
    members = summary["members"]
    missing = [name for name in SPLITS[:2] if not any(name in member for member in members)]
    if summary["dataset"] == "custom" and missing:
        yield (
            f"-: {' and '.join(missing)} not measured after the last update: the trainer was given "
            "loaders. A data module (datamodule=) has figures of every split."
        )


def format_split(
    members: Sequence[dict[str, Any]], split: str, ensembles: Sequence[dict[str, Any]] = ()
) -> str:
    """A split's figures, a line per λ: mean ± standard deviation over the seeds not diverged.

    Args:
        members: with their figures, as in summary.json.
        split: train, val or test.
        ensembles: theirs, likewise, which have a line below that of their λ.
    """

    def cells(members: Sequence[dict[str, Any]]) -> list[str]:
        kinds = {"accuracy": (100, 2), "cost": (1, 4), "loss": (1, 4)}
        return [_mean_std(collect(members, split, q), *kind) for q, kind in kinds.items()]

    def of_ensemble(one: dict[str, Any]) -> list[str]:
        return [_share(one, split), "-", _mean([one[split]["loss"]] if split in one else [])]

    columns = ["accuracy (%)", "cost", "loss"]
    return "\n".join(_lines(columns, members, ensembles, cells, of_ensemble))


def _share(ensemble: dict[str, Any], split: str) -> str:
    """The accuracy of an ensemble in %, if it was measured on the split."""
    return f"{100 * ensemble[split]['accuracy']:.2f}" if split in ensemble else "-"


def _words_of(ensembles: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the columns are."""
    for kind, one in {_kind(one): one for one in ensembles}.items():
        ends = ends_of(len(one.get("snapshots", [])))
        views = ",\n  over images and their mirror images" if "mirror" in one else ""
        yield f"{kind}: mean class probabilities of a λ's networks{ends}{views}"


def _kind(ensemble: dict[str, Any]) -> str:
    return "snapshots" if "snapshots" in ensemble else "ensemble"


def _lines(
    columns: Sequence[str],
    members: Sequence[dict[str, Any]],
    ensembles: Sequence[dict[str, Any]],
    cells: Callable[[Sequence[dict[str, Any]]], list[str]],
    of_ensemble: Callable[[dict[str, Any]], list[str]],
) -> Iterator[str]:
    """A head, a line for each λ with how many networks it has, and below it its ensembles."""
    word = "networks" if any("step" in member for member in members) else "seeds"
    rows, diverged = list[list[str]](), list[str]()
    for l2, places in by_l2([member["l2"] for member in members]).items():
        group = [members[place] for place in places]
        gone = sum(member.get("diverged", False) for member in group)
        seeds = f"{len(group) - gone}/{len(group)}" if gone else str(len(group))
        rows.append([f"{l2:.3g}", seeds, *cells(group)])
        diverged += [f"{gone} of l2 = {l2:.3g}"] if gone else []
        for one in (one for one in ensembles if one["l2"] == l2):
            rows.append(["", _kind(one), *of_ensemble(one)])
    yield from table(["l2", word, *columns], rows)
    if diverged:
        yield f"diverged and left out: {', '.join(diverged)}"
    yield from _words_of(ensembles)


def network_name(hidden: int) -> str:
    """What a network is called where a person reads of it."""
    return f"{hidden} hidden units" if hidden else "linear softmax"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f}" if values else "-"


def _mean_std(values: Sequence[float], unit: float = 1, digits: int = 2) -> str:
    if not values:
        return "-"
    mean = f"{unit * statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {unit * statistics.stdev(values):.{digits}f}"

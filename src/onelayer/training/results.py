"""Results: the metrics that a run ends with, in summary.json and test.json."""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torchmetrics import MetricCollection

from onelayer.core.checks import check_number, check_whole
from onelayer.data.adapter import (
    batches,
    class_names,
    has_loader,
    name_of,
    samples_of,
    shape_of,
    weighted,
)
from onelayer.data.loader import ResidentLoader
from onelayer.data.split import Splits
from onelayer.training.classification import classification_metrics, report_of
from onelayer.training.files import write_json
from onelayer.training.folder import run_folder
from onelayer.training.metrics import check_image, ensembles_of
from onelayer.training.module import OneLayer
from onelayer.training.observer import Observer, observers, others
from onelayer.training.records import (
    QUANTITIES,
    Row,
    last_figures,
    quantities,
    restored_rows,
    values_of,
)
from onelayer.training.summary import SPLITS, collect, ensemble_kind, format_summary

FILE = "test.json"


class Results(Observer):
    """Collects the metrics that a run ends with, and writes them in the run's folder.

    ``summary`` is the content of summary.json: each member's metrics on every split, and, of
    several networks with one λ, those of their ensemble, which predicts by the mean of their class
    probabilities. It is None until a fit has ended; test metrics are added when ``trainer.test``
    follows. A complete run that is resumed keeps what it has: then ``finished`` is true.

    ``report`` is the content of test.json, for the networks that ``predict`` uses by default: top-5
    accuracy, balanced accuracy (the mean of the classes' recalls), expected calibration error with
    its bins, precision, recall and F1 of each class, and the confusion matrix, whose rows are the
    true classes.

    Args:
        folder: folder of test.json; the run's folder by default.
        mirror: average tests and predictions over each image and the image flipped left to right;
            metrics of single networks never are.

    Raises:
        InputError: ``mirror`` is true, but the samples are not images.
    """

    logs_test_figures = True

    def __init__(self, folder: str | Path | None = None, mirror: bool = False) -> None:
        self.folder = None if folder is None else Path(folder)
        self.mirror = mirror
        self.summary: dict[str, Any] | None = None
        self.report: dict[str, Any] | None = None
        self.finished, self._trained = False, False
        self._metrics: MetricCollection | None = None
        self._figures: list[Row] = []  # of each split, measured last
        self._returned: list[dict[str, Any]] = []  # by trainer.test, a dict for each loader
        self._seconds = 0.0
        self._started = 0.0

    def __repr__(self) -> str:
        """Return the size of the results; ``print`` shows the table."""
        if self.summary is None:
            return "Results(no training run has ended)"
        networks, tested = len(self.summary["members"]), "test" in self.summary["members"][0]
        return (
            f"Results({networks} network{'s' * (networks > 1)}, {self.summary['steps']} updates, "
            f"{'tested' if tested else 'not tested'})"
        )

    def __str__(self) -> str:
        return "no training run has ended" if self.summary is None else format_summary(self.summary)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to flip what is not an image before a training run, not after it."""
        if stage in ("fit", "validate"):
            self._set_mirror(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set whether images are flipped; the shape of images is known from a checkpoint now."""
        self._set_mirror(trainer, pl_module)

    def _set_mirror(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, data = cast(OneLayer, pl_module), cast(Any, trainer).datamodule
        module.ensembles.mirror = (
            check_image(shape_of(data), module.inputs) if self.mirror else None
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse metrics of other networks in a checkpoint."""
        for row in self._figures:
            members = len(cast(Any, pl_module).members)
            check_whole("a network's number in the checkpoint's curves", row.member, 0, members - 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started, self._trained = time.monotonic(), True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock once the GPU, if any, is done."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._seconds, self._started = self._total(), 0.0

    def _total(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started else 0.0)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary of training and validation."""
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
        """Keep the latest metrics; add test metrics to the summary of the fit before."""
        self._figures = [row for split in SPLITS for row in last_figures(rows, split)]
        if rows[-1].split != "test" or self.summary is None or self.finished:
            return
        for row in last_figures(rows, "test"):
            _enter(self.summary["members"][row.member], row)
        for networks in _all_networks(trainer, pl_module):
            _enter_ensembles(self.summary, ensembles_of(networks, "test"))
        self._write(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with no samples."""
        self._set_mirror(trainer, pl_module)
        # In each process a ResidentLoader gives the complete split.
        sync = not isinstance(trainer.test_dataloaders, ResidentLoader)
        made = classification_metrics(cast(OneLayer, pl_module).outputs, sync)
        self._metrics = made.to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch to the report."""
        if self._metrics is not None and dataloader_idx == 0:
            X, y, _ = samples_of(batch)
            module = cast(OneLayer, pl_module)
            P = module.predict_proba(X, "best", module.ensembles.mirror)
            if bool(P.isfinite().all()):
                self._metrics.update(P.float(), y.to(P.device))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write test.json, before the run's summary is written."""
        self._returned = trainer.test_loop._logged_outputs  # trainer.test is about to return it
        if self._metrics is None or not self._metrics["confusion"].update_called:
            return
        module, data = cast(OneLayer, pl_module), cast(Any, trainer).datamodule
        self.report = {
            "dataset": "custom" if data is None else name_of(data),
            "networks": module.choose("best").words,
            **report_of(self._metrics, class_names(module, module.outputs)),
        }
        folder = self.folder or run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, self.report)
        for observer in observers(trainer):
            observer.on_report(trainer, self.report, folder)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let ``trainer.test`` return and print the metrics that its loggers get from here."""
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
        """Return the mean test metrics of the λ that is best on validation."""
        assert self.summary is not None
        chosen = cast(Any, trainer.lightning_module).choose("best").members
        members = [self.summary["members"][m] for m in chosen]
        return {
            f"test/{name}": statistics.fmean(values)
            for name in quantities(members[0].get("test", {}))
            if (values := collect(members, "test", name))
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of training so far, and the latest metrics."""
        return {"seconds": self._total(), "rows": [values_of(row) for row in self._figures]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the clock and the metrics of the resumed run."""
        check_number("the checkpoint's seconds", state_dict.get("seconds"))
        self._seconds = state_dict["seconds"]
        self._figures = restored_rows(state_dict.get("rows"))


def _enter(member: dict[str, Any], row: Row) -> None:
    """Enter a split's metrics. JSON has neither NaN nor infinity: a diverged member has null."""
    figures = row._asdict()
    member[row.split] = {
        name: figures[name] if math.isfinite(figures[name]) else None
        for name in quantities(figures)
    }
    if None in member[row.split].values():
        member["diverged"] = True


def _enter_ensembles(summary: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """Add the metrics of ensembles to those of other splits."""
    kept = {_which(one): one for one in summary.get("ensembles", [])}
    for one in found:
        kept[_which(one)] = kept.get(_which(one), {}) | one
    if kept:
        summary["ensembles"] = list(kept.values())


def _which(ensemble: dict[str, Any]) -> tuple[Any, ...]:
    return ensemble["l2"], ensemble_kind(ensemble)


def _all_networks(trainer: Trainer, module: LightningModule) -> list[LightningModule]:
    """Return the module, and the networks that observers have saved during its training."""
    return [module, *(n for o in observers(trainer) for n in o.networks(trainer, module))]


def _on_validation(trainer: Trainer, module: Any) -> list[dict[str, Any]]:
    """Return the metrics of ensembles on the complete validation split, as Curves measures it."""
    data, measure = trainer.datamodule, module.ensembles  # type: ignore[attr-defined]
    measure.reset()
    if not measure.wanted or data is None:
        return []
    W = module.weights[0]
    if isinstance(data, Splits):
        found: Any = [split] if (split := weighted(data, "val")) is not None else []
    elif has_loader(data, "val") and not module.overridden(("validation_step",)):
        found = ((X.to(W.dtype), y, weight) for X, y, weight in batches(data, "val"))
    else:
        return []
    with torch.no_grad(), isolate_rng():  # a loader may shuffle
        for X, y, weight in found:
            y = y.to(W.device)
            measure.update(X.to(W.device), y, module.weights, module.sample_weight(y, weight))
    return ensembles_of(module, "val")


def members_with(module: OneLayer, split: str, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each member with its metrics (m,) over a split, as in summary.json."""
    members: list[dict[str, Any]] = [member.named() for member in module.members]
    found = {name: figures[name].tolist() for name in quantities(figures)}
    _enter_all(members, split, module, found)
    return members


def _enter_all(
    members: list[dict[str, Any]], split: str, module: OneLayer, figures: dict[str, list[float]]
) -> None:
    """Enter each member's metrics over a split."""
    values = zip(*(figures[name] for name in quantities(figures)), strict=True)
    for i, (member, numbers) in enumerate(zip(module.members, values, strict=True)):
        _enter(members[i], Row(0, split, i, member.l2, member.seed, math.nan, *numbers))


def _read_summary(folder: Path | None) -> dict[str, Any] | None:
    """Return the summary.json that an earlier process left, if it has test metrics."""
    if folder is None or not (path := folder / "summary.json").is_file():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return summary if all("test" in member for member in summary["members"]) else None
    except (ValueError, KeyError, TypeError):  # damaged: made anew
        return None

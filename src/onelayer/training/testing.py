"""What people look at after a test: each class, the confusion matrix, the calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
)
from torchmetrics.utilities import dim_zero_cat

from onelayer.data.adapter import class_names, name_of, pair
from onelayer.data.loader import ResidentLoader
from onelayer.data.naming import shown
from onelayer.training.ensembles import check_image
from onelayer.training.folder import run_folder
from onelayer.training.observer import Observer, observers
from onelayer.training.population import Population
from onelayer.training.results import write_json

BINS = 15
"""Of confidence, in the calibration error: as in Guo et al., 2017."""
FILE = "test.json"
MOST_CLASSES = 100
"""Of a confusion matrix in test.json, and pairs of classes in place of a larger one."""


class Bin(NamedTuple):
    """Predictions of about the same confidence: how many, their mean confidence and accuracy."""

    samples: int
    confidence: float
    accuracy: float


class TestReport(Observer):
    """Looks at the test split as people do, by the networks that answer for the run.

    These are those of the λ best on validation, averaged over their seeds, as ``predict`` takes
    them. When a test has ended, ``report`` holds what test.json in the run's folder holds: accuracy
    of the first and the first five guesses, balanced accuracy (the mean of the classes' recalls),
    expected calibration error with its bins, precision, recall and F1 of each class, and the
    confusion matrix, whose rows are the true classes.

    Args:
        folder: where test.json is written; the run's by default.
        mirror: whether tests and predictions are the mean over each image and its mirror image,
            left and right exchanged; figures of single networks never are.

    Raises:
        InputError: mirror images are asked for, and samples are no images.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, folder: str | Path | None = None, mirror: bool = False) -> None:
        self.folder = None if folder is None else Path(folder)
        self.mirror = mirror
        self.report: dict[str, Any] | None = None
        self._metrics: MetricCollection | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse mirror images of what is no image before a training, not after it."""
        if stage in ("fit", "validate"):
            self._set_mirror(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say whether mirror images answer, too; by now a checkpoint has told the images' shape."""
        self._set_mirror(trainer, pl_module)

    def _set_mirror(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Population):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        shape = getattr(data, "shape", None) if self.mirror else None
        pl_module.ensembles.mirror = check_image(shape, pl_module.inputs) if self.mirror else None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with nothing."""
        self._metrics = None
        self._set_mirror(trainer, pl_module)
        if not isinstance(pl_module, Population):
            return
        k, loaders = pl_module.outputs, trainer.test_dataloaders
        # In each process a ResidentLoader gives all of the split.
        whole = isinstance(loaders, ResidentLoader)
        options: dict[str, Any] = {"validate_args": False, "sync_on_compute": not whole}
        self._metrics = MetricCollection(
            {
                **({"top5": MulticlassAccuracy(k, 5, "micro", **options)} if k > 5 else {}),
                "confusion": MulticlassConfusionMatrix(k, **options),
                "calibration": MulticlassCalibrationError(k, n_bins=BINS, **options),
            },
            compute_groups=False,
        ).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        if self._metrics is not None and dataloader_idx == 0:
            X, y = pair(batch)
            module = cast(Population, pl_module)
            P = module.predict_proba(X, "best", module.ensembles.mirror)
            if bool(P.isfinite().all()):
                self._metrics.update(P.float(), y.to(P.device))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write test.json, and show it to those who draw: before the run's summary is written."""
        if self._metrics is None or not self._metrics["confusion"].update_called:
            return
        module = cast(Population, pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        names = class_names(module, module.outputs)
        head = {
            "dataset": "custom" if data is None else name_of(data),
            "networks": module.choose("best").words,
        }
        self.report = head | report_of(self._metrics, names)
        folder = self.folder or run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, _in_short(self.report))
        for observer in observers(trainer):
            observer.on_report(trainer, self.report, folder)


def _in_short(report: dict[str, Any]) -> dict[str, Any]:
    """The same for a file: of many classes not the matrix, but whom they are mistaken for most."""
    if len(report["classes"]) <= MOST_CLASSES:
        return report
    confusion = torch.tensor(report["confusion"]).fill_diagonal_(0)
    counts, places = confusion.flatten().topk(MOST_CLASSES)
    names = [one["class"] for one in report["classes"]]
    mistakes = [
        {"class": names[place // len(names)], "guessed": names[place % len(names)], "samples": n}
        for n, place in zip(counts.tolist(), places.tolist(), strict=True)
        if n
    ]
    return {**report, "confusion": None, "mistakes": mistakes}


def report_of(metrics: MetricCollection, names: list[str]) -> dict[str, Any]:
    """What test.json holds of the figures that were gathered."""
    confusion = cast(Tensor, metrics["confusion"].compute()).double().cpu()
    correct, true, guessed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    recall, precision = correct / true, correct / guessed
    f1 = 2 * correct / (true + guessed)
    calibration = cast(MulticlassCalibrationError, metrics["calibration"])
    return {
        "samples": int(true.sum()),
        "accuracy": float(correct.sum() / true.sum()),
        "top5_accuracy": float(metrics["top5"].compute()) if "top5" in metrics else None,
        "balanced_accuracy": float(recall[true > 0].mean()),
        "calibration_error": float(calibration.compute()),
        "bins": [one._asdict() for one in bins_of(calibration)],
        "classes": [
            {
                "class": name,
                "samples": int(true[k]),
                "precision": _number(precision[k]),
                "recall": _number(recall[k]),
                "f1": _number(f1[k]),
            }
            for k, name in enumerate(names)
        ],
        "confusion": confusion.long().tolist(),
    }


def bins_of(calibration: MulticlassCalibrationError) -> list[Bin]:
    """The bins of confidence, empty ones left out."""
    confidence = dim_zero_cat(calibration.confidences).double().cpu()
    correct = dim_zero_cat(calibration.accuracies).double().cpu()
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    found = []
    for b in range(BINS):
        own = place == b
        if own.any():
            mean, share = float(confidence[own].mean()), float(correct[own].mean())
            found.append(Bin(int(own.sum()), mean, share))
    return found


def _number(value: Tensor) -> float | None:
    """A share, or None for one of nothing."""
    return float(value) if torch.isfinite(value) else None


def format_report(report: dict[str, Any], most: int = 30) -> str:
    """The figures in a line, and a line per class: the worst ones, where there are many."""
    top5 = report["top5_accuracy"]
    head = (
        f"of {report['networks']}: balanced accuracy {100 * report['balanced_accuracy']:.2f} %"
        + ("" if top5 is None else f", among the first five {100 * top5:.2f} %")
        + f", calibration error {100 * report['calibration_error']:.2f} %"
    )
    classes = report["classes"]
    title = f"{'class':<24} {'samples':>7} {'precision':>9} {'recall':>7} {'F1':>7}"
    if len(classes) > most:
        classes = sorted(classes, key=lambda one: one["f1"] or 0.0)[:most]
        title += f"  (the {most} of lowest F1)"
    return "\n".join([head, title, *map(_line, classes)])


def _line(one: dict[str, Any]) -> str:
    shares = (one["precision"], one["recall"], one["f1"])
    cells = [f"{100 * share:.2f}" if share is not None else "-" for share in shares]
    name = shown(one["class"], 24)
    return f"{name:<24} {one['samples']:>7} {cells[0]:>9} {cells[1]:>7} {cells[2]:>7}"

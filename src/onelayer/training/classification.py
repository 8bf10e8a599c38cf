"""Metrics of a test split: top-5 and balanced accuracy, confusion matrix, calibration."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
)
from torchmetrics.utilities import dim_zero_cat

BINS = 15  # of confidence, in the calibration error (Guo et al., 2017)


class Bin(NamedTuple):
    """Predictions of about the same confidence: how many, their mean confidence and accuracy."""

    samples: int
    confidence: float
    accuracy: float


def classification_metrics(classes: int, sync: bool) -> MetricCollection:
    """Return the metrics that :func:`report_of` reads.

    Args:
        classes: number of classes k.
        sync: add up over processes; not where each process has the complete split.
    """
    options: dict[str, Any] = {"validate_args": False, "sync_on_compute": sync}
    return MetricCollection(
        {
            **({"top5": MulticlassAccuracy(classes, 5, "micro", **options)} if classes > 5 else {}),
            "confusion": MulticlassConfusionMatrix(classes, **options),
            "calibration": MulticlassCalibrationError(classes, n_bins=BINS, **options),
        },
        compute_groups=False,
    )


def report_of(metrics: MetricCollection, names: list[str]) -> dict[str, Any]:
    """Return the content of test.json."""
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
    """Return the bins of confidence that are not empty."""
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
    """Return a number for JSON, which has no NaN: None."""
    return float(value) if torch.isfinite(value) else None

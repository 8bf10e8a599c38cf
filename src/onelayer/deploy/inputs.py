"""Inputs of scikit-learn's users as tensors: arrays, tables, sparse matrices and tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    column_or_1d,
    validate_data,
)
from torch import Tensor

from onelayer.core.class_weight import balanced
from onelayer.core.errors import InputError
from onelayer.data.features import free_memory
from onelayer.deploy.linear import plain_number

FLOATS = (np.float64, np.float32)
SPARSE_ROWS = 4096  # rows of a sparse matrix that are densified at a time to predict


def learning_inputs(
    estimator: Any, X: Any, y: Any, sample_weight: Any, device: str | None
) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Return features (n, d), labels from 0 (n,), weights (n,) in float64, and class names (k,).

    The features keep the dtype float32 or float64. Class weights multiply the sample weights.
    """
    features = _features(estimator, X, reset=True)
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None"
        )
    y = column_or_1d(on_cpu(y), warn=True)
    _check_complete(y)
    check_consistent_length(features, y)
    check_classification_targets(y)
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            f"y has one class only, {plain_number(classes[0])!r}. A classifier needs at least "
            "two classes. Check the labels."
        )
    weight = _weights(features, on_cpu(sample_weight), estimator.class_weight, classes, y)
    _check_weights_of_classes(weight, labels, classes)
    at = device_of(X, device)
    return (
        dense(features).to(at),
        torch.from_numpy(labels.astype(np.int64)).to(at),
        torch.from_numpy(weight).to(at),
        classes,
    )


def prediction_chunks(estimator: Any, X: Any, device: str | None) -> Iterator[Tensor]:
    """Yield features (n', d) that a fitted estimator predicts for."""
    features, at = _features(estimator, X, reset=False), device_of(X, device)
    if hasattr(features, "toarray"):
        for start in range(0, features.shape[0], SPARSE_ROWS):
            yield dense(features[start : start + SPARSE_ROWS]).to(at)
    else:
        yield dense(features).to(at)


def device_of(X: Any, device: str | None) -> torch.device:
    """Return the device asked for; by default that of a tensor, and the CPU for all else."""
    if device is not None:
        return torch.device(device)
    return X.device if isinstance(X, Tensor) else torch.device("cpu")


def is_on_device(X: Any) -> bool:
    """Return whether X is a tensor outside the CPU's memory, which is checked where it is."""
    return isinstance(X, Tensor) and X.device.type != "cpu"


def on_cpu(values: Any) -> Any:
    """Return a tensor as an array; anything else as it is."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    low = values.dtype in (torch.float16, torch.bfloat16)
    return (values.float() if low else values).numpy()


def dense(features: Any) -> Tensor:
    """Return a tensor of a checked array or sparse matrix; raise if it does not fit in memory."""
    if hasattr(features, "toarray"):
        needed = features.shape[0] * features.shape[1] * features.dtype.itemsize
        free = free_memory(torch.device("cpu"))
        if needed > free:
            raise MemoryError(
                f"X is sparse, and dense it takes {needed / 1e9:,.1f} GB, of which "
                f"{free / 1e9:,.1f} GB are free. Choose fewer features or samples, or reduce the "
                "features with sklearn.decomposition.TruncatedSVD."
            )
        features = features.toarray()
    if isinstance(features, Tensor):
        return features
    features = np.ascontiguousarray(features)
    if not features.flags.writeable:  # torch warns of arrays that it must not write to
        features = features.copy()
    return torch.from_numpy(features)


def _features(estimator: Any, X: Any, reset: bool) -> Any:
    """Check features as scikit-learn does, and set or compare their names and number."""
    checks = {"accept_sparse": "csr", "dtype": FLOATS, "reset": reset}
    if not is_on_device(X):
        return validate_data(estimator, on_cpu(X), **checks)
    if X.ndim != 2 or not bool(X.isfinite().all()):
        raise InputError(
            f"X has shape {tuple(X.shape)}, and must be (n, d) without NaN or infinity. "
            "Reshape it, or drop those samples."
        )
    validate_data(estimator, np.zeros((1, X.shape[1])), reset=reset)
    X = X.detach()
    return X if X.dtype in (torch.float32, torch.float64) else X.float()


def _check_complete(y: np.ndarray) -> None:
    """Raise ValueError where a label is missing: NaN or None."""
    missing = [label is None or label != label for label in y.tolist()]
    if any(missing) or (y.dtype.kind == "f" and not np.isfinite(y).all()):
        raise ValueError(
            "Input y contains NaN or infinity. Every sample needs a label. Drop those without."
        )


def _weights(
    features: Any, sample_weight: Any, class_weight: Any, classes: np.ndarray, y: np.ndarray
) -> np.ndarray:
    reference = np.zeros((len(y), 1)) if isinstance(features, Tensor) else features
    weight = np.array(_check_sample_weight(sample_weight, reference, dtype=np.float64))
    if (weight < 0).any():
        raise InputError(
            f"Negative values in sample_weight: {weight.min():g}. A sample weight is zero or "
            "larger. Correct or drop the samples."
        )
    if not weight.any():
        raise InputError(
            "sample_weight is zero for every sample. At least one weight must be above zero. "
            "Pass other weights."
        )
    if class_weight is None:
        return weight
    if class_weight == "balanced":  # counts are those of repeated samples
        totals = [weight[y == name].sum() for name in classes]
        of_class = balanced(torch.tensor(totals, dtype=torch.float64)).numpy()
    else:
        of_class = compute_class_weight(class_weight, classes=classes, y=y)
    if not (of_class >= 0).all():
        raise InputError(
            f"class_weight has the value {of_class.min():g}. A class weight is zero or larger. "
            "Correct it."
        )
    weighted: np.ndarray = weight * of_class[np.searchsorted(classes, y)]
    return weighted


def _check_weights_of_classes(weight: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> None:
    empty = np.bincount(labels, weight, len(classes)) == 0
    if empty.any():
        raise InputError(
            f"all samples of the class {plain_number(classes[empty][0])!r} have weight zero: its "
            "bias would go to minus infinity. Drop them from X and y, or give one of them a "
            "weight above zero."
        )


def known_labels(y: Any, classes: np.ndarray) -> np.ndarray:
    """Return the index of each label among the classes (n,); raise where it is none of them."""
    y = column_or_1d(y)
    unknown = ~np.isin(y, classes)
    if unknown.any():
        raise InputError(
            f"y has the label {plain_number(y[unknown][0])!r}, which is none of the "
            f"{len(classes)} classes that were learned. Drop its samples, or fit with it."
        )
    index: np.ndarray = np.searchsorted(classes, y)
    return index

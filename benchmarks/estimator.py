"""OneLayerClassifierCV beside scikit-learn's LogisticRegressionCV: seconds, gaps, accuracy.

``python -m benchmarks.estimator`` runs 10 C × 5 folds on digits, on pixels of CIFAR-10 (10,000
rows) and on imbalanced features (50,000 × 768, 100 classes). The largest gap of scikit-learn's
networks is found by our certificate, of the refitted network alone: its folds' are not kept.
LogisticRegression on torch tensors, which has no cross-validation of its own, fits every C and fold
in turn. A fit that takes longer than ``--limit`` seconds is ended and printed as such.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from typing import Any

from onelayer._compat import share_cores

share_cores()
os.environ["SCIPY_ARRAY_API"] = "1"  # read when scipy is imported

import numpy as np
import sklearn
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold, train_test_split

from onelayer.core.optimum.certificate import certify
from onelayer.core.optimum.data import Samples
from onelayer.sklearn import OneLayerClassifierCV

CS, FOLDS = np.logspace(-4, 4, 10), 5
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def digits() -> Split:
    X, y = load_digits(return_X_y=True)
    return _standardised(*train_test_split(X, y, test_size=0.2, random_state=0, stratify=y))


def cifar10() -> Split:
    from onelayer.data.cifar10 import CIFAR10DataModule

    data = CIFAR10DataModule()
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    parts = []
    for split, n in (("train", 10_000), ("test", 2_000)):
        X, y = data.tensors(split)
        rows = torch.arange(n)
        parts.append((X.index_select(0, rows).float().numpy(), y[:n].numpy()))
    (X, y), (X_test, y_test) = parts
    return X, X_test, y, y_test


def features(n: int = 50_000, d: int = 768, k: int = 100) -> Split:
    """Sizes of classes fall like 1/rank, and classes overlap."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, k + 1)
    scale = 1 / np.sqrt(np.arange(1, d + 1))
    centres = rng.normal(size=(k, d)) * scale
    parts = []
    for rows in (n, n // 5):
        y = np.concatenate([np.arange(k).repeat(5), rng.choice(k, rows, p=shares / shares.sum())])
        X = 0.11 * centres[y] + rng.normal(size=(len(y), d)) * scale
        parts.append((X.astype(np.float32), y))
    (X, y), (X_test, y_test) = parts
    return _standardised(X, X_test, y, y_test)


def _standardised(X: Any, X_test: Any, y: Any, y_test: Any) -> Split:
    mean, std = X.mean(0), X.std(0)
    std[std == 0] = 1
    return (X - mean) / std, (X_test - mean) / std, y, y_test


SETS = {"digits": digits, "cifar10": cifar10, "features": features}


def of_ours(X: Any, y: Any) -> tuple[Any, float]:
    probe = OneLayerClassifierCV(CS, cv=FOLDS).fit(X, y)
    return probe, max(float(probe.fold_gap_.max()), float(probe.path_.gap.max()), probe.gap_)


def of_theirs(X: Any, y: Any) -> tuple[Any, float]:
    probe = LogisticRegressionCV(
        Cs=CS, cv=FOLDS, n_jobs=2, scoring="accuracy", l1_ratios=(0,), use_legacy_attributes=False
    ).fit(X, y)
    return probe, _gap(probe, float(probe.C_), torch.from_numpy(X), torch.from_numpy(y))


def of_tensors(X: Any, y: Any) -> tuple[Any, float]:
    X, y = torch.from_numpy(X), torch.from_numpy(y)
    with sklearn.config_context(array_api_dispatch=True):
        scores = np.zeros(len(CS))
        for train, test in StratifiedKFold(FOLDS).split(X, y):
            for i, C in enumerate(CS):
                fold = LogisticRegression(C=C).fit(X[train], y[train])
                scores[i] += float(fold.score(X[test], y[test]))
        probe = LogisticRegression(C=CS[scores.argmax()]).fit(X, y)
    probe.C_ = probe.C
    probe.coef_, probe.intercept_, probe.classes_ = (
        np.asarray(value) for value in (probe.coef_, probe.intercept_, probe.classes_)
    )
    return probe, _gap(probe, float(probe.C_), X, y)


def _gap(probe: Any, C: float, X: torch.Tensor, y: torch.Tensor) -> float:
    """Return the certified gap of a multinomial classifier of scikit-learn's."""
    found = certify(
        Samples(X, y),
        torch.as_tensor(probe.coef_)[None].double(),
        torch.as_tensor(probe.intercept_)[None].double(),
        torch.tensor([1 / (2 * C * len(y))], dtype=torch.float64),
    )
    return float(found.gap)


CONTENDERS = {"onelayer": of_ours, "scikit-learn": of_theirs, "tensors": of_tensors}


def measure(who: str, name: str) -> None:
    X, X_test, y, y_test = SETS[name]()
    warnings.resetwarnings()  # joblib sends filters, and their classes, to its processes
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    probe, gap = CONTENDERS[who](X, y)
    seconds = time.perf_counter() - start
    print(
        f"{name:9} {who:13} {seconds:8.1f} s  gap {gap:.1e}  C {float(probe.C_):.3g}  "
        f"test accuracy {probe.score(X_test, y_test):.4f}",
        flush=True,
    )


def main() -> None:
    """Print a line for each classifier and data set, each measured in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--who", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--limit", type=float, default=7200.0)
    parser.add_argument("--here", action="store_true", help="measure in this process")
    args = parser.parse_args()
    for name in args.sets:
        for who in args.who:
            if args.here:
                measure(who, name)
                continue
            words = ["-m", "benchmarks.estimator", "--here", "--sets", name, "--who", who]
            try:
                subprocess.run([sys.executable, *words], check=True, timeout=args.limit)
            except subprocess.TimeoutExpired:
                print(f"{name:9} {who:13} more than {args.limit:.0f} s", flush=True)


if __name__ == "__main__":
    main()

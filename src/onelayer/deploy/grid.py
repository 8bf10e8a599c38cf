"""Cross-validation of λ: folds as weights, scores of every fold and λ, and the choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import check_cv
from sklearn.utils import Bunch

from onelayer.core.checks import check_among, check_positive, check_whole
from onelayer.core.errors import InputError
from onelayer.deploy.linear import l2_of, plain_number

Splits = list[tuple[np.ndarray, np.ndarray]]
RULES = ("best", "one_se")


def values_of(Cs: Any, l2s: Any) -> tuple[str, np.ndarray]:
    """Return ``"C"`` or ``"l2"`` and its values (l,); an int is a number of them, 1e-4 to 1e4."""
    name, values = ("C", Cs) if l2s is None else ("l2", l2s)
    values = plain_number(values)
    if isinstance(values, int) and not isinstance(values, bool):
        check_whole(f"{name}s", values, 1)
        return name, np.logspace(-4, 4, values)
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise InputError(
            f"{name}s is {values!r}, and must be a whole number or a list of numbers. "
            "Pass how many to try, or which."
        )
    found = [plain_number(value) for value in values]
    for value in found:
        check_positive(f"each of {name}s", value)
    if not found or len(set(found)) < len(found):
        raise InputError(f"{name}s must list at least one value, and none twice, not {found}.")
    return name, np.array(found, dtype=float)


def penalties(name: str, values: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """Return λ (g, l) of each row of weights (g, n) and each value of C or l2 (l,)."""
    if name == "l2":
        return np.tile(values, (len(weights), 1))
    return np.array([[l2_of(C, w.sum(), classes) for C in values] for w in weights])


def splits_of(cv: Any, X: Any, y: np.ndarray, groups: Any) -> Splits:
    """Return the indices of training and test samples of every fold."""
    splits = list(check_cv(cv, y, classifier=True).split(X, y, groups))
    if not splits:
        raise InputError("cv has no folds. Pass a number, a splitter or an iterable of splits.")
    return splits


def fold_weights(
    weight: np.ndarray, labels: np.ndarray, splits: Splits, classes: np.ndarray
) -> np.ndarray:
    """Return the weights (f, n) that each fold learns from: 0 outside its training samples.

    A sample that a splitter repeats counts as often.
    """
    numbers = np.arange(len(weight))
    counts = [np.bincount(numbers[train], minlength=len(weight)) for train, _ in splits]
    weights = weight * np.array(counts)
    for fold, row in enumerate(weights):
        totals = np.bincount(labels, row, len(classes))
        if not (totals > 0).all():
            raise InputError(
                f"fold {fold} of cv learns from no sample of class "
                f"{plain_number(classes[totals.argmin()])!r}. Choose fewer folds, "
                "or a splitter that stratifies the classes."
            )
    return weights


def choose(scores: np.ndarray, strength: np.ndarray, rule: str) -> int:
    """Return the index of the value chosen by scores (f, l).

    Args:
        scores: score of each fold and value; larger is better.
        strength: λ of each value, to prefer the larger.
        rule: ``"best"``: the best mean; of equal ones that of the largest λ. ``"one_se"``: the
            largest λ whose mean is within one standard error of the best.

    Source: Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning*, section 7.10.
    """
    check_among("rule", rule, RULES)
    means = scores.mean(0)
    if not np.isfinite(means).all():
        raise InputError(
            "scoring has returned a score that is not finite. Choose another scoring, or other "
            "folds."
        )
    best = int(means.argmax())
    least = means[best]
    if rule == "one_se" and len(scores) > 1:
        least -= scores[:, best].std(ddof=1) / np.sqrt(len(scores))
    candidates = np.flatnonzero(means >= least)
    return int(candidates[strength[candidates].argmax()])


def plot(scores: np.ndarray, path: Bunch, chosen: int, ylabel: str, ax: Any = None) -> Any:
    """Draw mean score and standard error over λ; return Matplotlib's axes."""
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(layout="constrained").add_subplot()
    error = scores.std(0, ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else 0 * scores[0]
    order: Sequence[int] = np.argsort(path.l2).tolist()
    ax.errorbar(path.l2[order], scores.mean(0)[order], error[order], marker="o", capsize=3)
    ax.axvline(path.l2[chosen], linestyle="--", color="grey")
    ax.set(xscale="log", xlabel="λ", ylabel=ylabel)
    return ax

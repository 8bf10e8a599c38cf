"""Cross-validated softmax classification: every λ and every fold in one certified population."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import get_scorer
from sklearn.utils import Bunch, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from onelayer.core.checks import check_among, check_positive, check_share, check_whole
from onelayer.core.errors import InputError
from onelayer.core.optimum.solve import Optima
from onelayer.deploy import grid
from onelayer.deploy.bootstrap import intervals, resampled
from onelayer.deploy.estimator import OneLayerClassifier, SoftmaxPredictions
from onelayer.deploy.inputs import known_labels, learning_inputs, on_cpu, prediction_chunks
from onelayer.deploy.linear import Scale, coefficients, fit_linear, l2_of, plain_number

LEVEL = 0.95  # share of the resamples inside an interval


class OneLayerClassifierCV(SoftmaxPredictions):
    """Choose the penalty of :class:`OneLayerClassifier` by cross-validation.

    Each fold is a row of sample weights. The members, one for each fold and each λ and those of
    all samples, are solved together, and each has a certified gap.

    Args:
        Cs: values of C, or how many of them from 1e-4 to 1e4. λ = 1 / (2 C Σw), with Σw of the
            fold's training samples, as in scikit-learn.
        l2s: values of λ, instead of Cs.
        cv: number of stratified folds, a splitter, or an iterable of splits; default 5.
        scoring: name of a scorer or a callable; default accuracy.
        rule: ``"best"`` or ``"one_se"``: the largest λ whose mean score is within one standard
            error of the best.
        refit: whether the chosen λ is solved for all samples; otherwise the coefficients are means
            over the folds.
        class_weight: as in :class:`OneLayerClassifier`. Balanced weights are those of all samples.
        fit_intercept: as in :class:`OneLayerClassifier`.
        gap: largest distance of each member's cost to its minimum.
        standardise: as in :class:`OneLayerClassifier`, by all samples.
        bootstrap: resamples of the training samples to solve for the chosen λ, for intervals.
        random_state: seed of the resamples.
        device: as in :class:`OneLayerClassifier`.

    Attributes:
        C_: chosen C, of all samples.
        l2_: chosen λ, of all samples.
        Cs_: values of C for all samples (l,).
        scores_: score of each fold and λ (f, l).
        path_: of all samples, for every λ: ``l2``, ``C``, ``cost``, ``gap`` (l,), ``coef``
            (l, k, d) and ``intercept`` (l, k); one row instead of k for two classes.
        fold_gap_: certified gap of each fold and λ (f, l).
        gap_: certified gap of the refitted network, or the largest of the folds'.
        score_interval_: 95 % intervals of accuracy and log loss, (low, high) each, if there are
            resamples: each network is measured on the samples that it has not drawn.
        bootstrap_gap_: certified gap of each resample's network.
        classes_: class names (k,).
        coef_: as in :class:`OneLayerClassifier`.
        intercept_: as in :class:`OneLayerClassifier`.
        n_iter_: iterations of each fold and λ (f, l).
        n_features_in_: d.
        feature_names_in_: column names, where X has some.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> probe = OneLayerClassifierCV(Cs=[0.1, 1.0, 10.0], cv=3).fit(X, y)
        >>> probe.scores_.shape, bool(probe.gap_ < 1e-6)
        ((3, 3), True)

    Source: :func:`onelayer.core.optimum.solve.solve`.
    """

    def __init__(
        self,
        Cs: Any = 10,
        *,
        l2s: Any = None,
        cv: Any = None,
        scoring: str | Callable[..., float] | None = None,
        rule: str = "best",
        refit: bool = True,
        class_weight: Any = None,
        fit_intercept: bool = True,
        gap: float = 1e-6,
        standardise: bool = False,
        bootstrap: int = 0,
        random_state: Any = None,
        device: str | None = None,
    ) -> None:
        self.Cs = Cs
        self.l2s = l2s
        self.cv = cv
        self.scoring = scoring
        self.rule = rule
        self.refit = refit
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.gap = gap
        self.standardise = standardise
        self.bootstrap = bootstrap
        self.random_state = random_state
        self.device = device

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None
    ) -> OneLayerClassifierCV:
        """Choose λ by X (n, d), y (n,), weights of the samples (n,) and groups for the splitter.

        Raises:
            ValueError: as :meth:`OneLayerClassifier.fit`; a fold without a class; an unknown rule
                or scoring.
            MemoryError: a sparse X that does not fit in memory when it is dense.

        Warns:
            UserWarning: a gap is larger than the one asked for.
        """
        check_positive("gap", plain_number(self.gap))
        check_among("rule", self.rule, grid.RULES)
        check_whole("bootstrap", plain_number(self.bootstrap), 0)
        name, values = grid.values_of(self.Cs, self.l2s)
        scorer = get_scorer(self.scoring or "accuracy")
        given = X, on_cpu(y)
        X, y, weight, self.classes_ = learning_inputs(self, X, y, sample_weight, self.device)
        labels, w = y.cpu().numpy(), weight.cpu().numpy()
        splits = grid.splits_of(self.cv, *given, groups)
        rows = np.vstack([grid.fold_weights(w, labels, splits, self.classes_), w])
        l2 = grid.penalties(name, values, rows, len(self.classes_))
        self._scale = Scale(X, weight, bool(self.fit_intercept)) if self.standardise else None
        W, b = self._solve(X, y, rows, l2)
        self.scores_ = self._score(scorer, X, labels, W, b, splits, on_cpu(sample_weight))
        self._choose(l2[-1], float(w.sum()))
        self._finish(X, y, weight, W, b)
        if self.bootstrap:
            self._resample(X, y, weight)
        del self._scale, self._start
        return self

    def _fit(
        self, X: Tensor, y: Tensor, weight: Tensor, l2: list[float], **more: Any
    ) -> tuple[Optima, Tensor, Tensor]:
        return fit_linear(
            X, y, weight, l2, gap=plain_number(self.gap), bias=bool(self.fit_intercept),
            scale=self._scale, **more,
        )  # fmt: skip

    def _solve(
        self, X: Tensor, y: Tensor, rows: np.ndarray, l2: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Solve all rows of weights (g, n) for their λ (g, l); return W (g, l, k, d) and b."""
        count = l2.shape[1]
        weight = torch.from_numpy(rows).to(X.device).repeat_interleave(count, 0)
        optima, W, b = self._fit(X, y, weight, l2.ravel().tolist(), polished=False)
        self._start = optima.W[-count:], optima.b[-count:]
        gaps, iterations, costs = (
            values.view(l2.shape).cpu().numpy()
            for values in (optima.gap, optima.iterations, optima.cost)
        )
        self.fold_gap_, self.n_iter_ = gaps[:-1], iterations[:-1]
        W, b = W.view(*l2.shape, *W.shape[1:]), b.view(*l2.shape, -1)
        pairs = [coefficients(*pair) for pair in zip(W[-1], b[-1], strict=True)]
        coef, intercept = (np.stack(parts) for parts in zip(*pairs, strict=True))
        self.path_ = Bunch(
            l2=l2[-1], cost=costs[-1], gap=gaps[-1], coef=coef, intercept=intercept
        )  # fmt: skip
        return W, b

    def _score(
        self,
        scorer: Callable[..., float],
        X: Tensor,
        labels: np.ndarray,
        W: Tensor,
        b: Tensor,
        splits: grid.Splits,
        weight: np.ndarray | None,
    ) -> np.ndarray:
        """Return the score of each fold and λ on the fold's test samples (f, l)."""
        scores = np.empty(W.shape[:2])[:-1]
        for fold, (_, test) in enumerate(splits):
            rows = np.arange(len(labels))[test]
            X_test, y_test = X[torch.from_numpy(rows).to(X.device)], self.classes_[labels[rows]]
            more = {} if weight is None else {"sample_weight": np.asarray(weight)[rows]}
            for i in range(scores.shape[1]):
                shell = self._shell(W[fold, i], b[fold, i])
                scores[fold, i] = scorer(shell, X_test, y_test, **more)
        return scores

    def _shell(self, W: Tensor, b: Tensor) -> OneLayerClassifier:
        """Return a fitted classifier with these parameters."""
        shell = OneLayerClassifier(device=self.device)
        shell.classes_, shell.n_features_in_ = self.classes_, self.n_features_in_
        shell.coef_, shell.intercept_ = coefficients(W, b)
        return shell

    def _choose(self, l2: np.ndarray, total: float) -> None:
        self._index = grid.choose(self.scores_, l2, self.rule)
        self.l2_ = float(l2[self._index])
        # l2_of is its own inverse: λ C is the same constant.
        self.Cs_ = np.array([l2_of(value, total, len(self.classes_)) for value in l2])
        self.path_.C = self.Cs_
        self.C_ = float(self.Cs_[self._index])

    def _finish(self, X: Tensor, y: Tensor, weight: Tensor, W: Tensor, b: Tensor) -> None:
        """Set coef_, intercept_ and gap_: refitted, or means over the folds."""
        i = self._index
        W_start, b_start = (T[i : i + 1] for T in self._start)
        if not self.refit:
            self.coef_, self.intercept_ = coefficients(W[:-1, i].mean(0), b[:-1, i].mean(0))
            self.gap_ = float(self.fold_gap_[:, i].max())
        else:
            optima, W, b = self._fit(X, y, weight, [self.l2_], start=(W_start, b_start))
            W_start, b_start = optima.W, optima.b
            self.coef_, self.intercept_ = coefficients(W[0], b[0])
            self.gap_ = float(optima.gap)
        self._start = W_start, b_start

    def _resample(self, X: Tensor, y: Tensor, weight: Tensor) -> None:
        """Solve for resampled weights, from the network of all samples."""
        rows = plain_number(self.bootstrap)
        counts = resampled(y.cpu().numpy(), rows, check_random_state(self.random_state))
        start = tuple(T.expand(rows, *T.shape[1:]) for T in self._start)
        weights = torch.from_numpy(counts).to(weight) * weight
        optima, W, b = self._fit(X, y, weights, [self.l2_], start=start, polished=False)
        self.bootstrap_gap_ = optima.gap.cpu().numpy()
        self._networks = W.cpu().numpy(), b.cpu().numpy()
        self.score_interval_ = intervals(X, y, W, b, (counts == 0).astype(float), LEVEL)

    def score_interval(self, X: Any, y: Any, level: float = LEVEL) -> Bunch:
        """Return intervals of accuracy and log loss on a test set X (n, d), y (n,).

        Each network of a resample is measured on a resample of the test set: the intervals cover
        the choice of training samples and of test samples, at the λ chosen.

        Raises:
            ValueError: there are no resamples, a label is none of ``classes_``, or X has other
                features.
        """
        check_is_fitted(self)
        check_share("level", level)
        if not hasattr(self, "_networks"):
            raise InputError("bootstrap is 0: there are no resamples. Fit with bootstrap=200.")
        X = torch.cat(list(prediction_chunks(self, X, self.device)))
        labels = known_labels(on_cpu(y), self.classes_)
        counts = resampled(labels, len(self._networks[0]), check_random_state(self.random_state))
        W, b = (torch.from_numpy(T).to(X.device) for T in self._networks)
        return intervals(X, torch.from_numpy(labels).to(X.device), W, b, counts, level)

    def plot_path(self, ax: Any = None) -> Any:
        """Draw mean score and standard error of every λ, and the chosen one; return the axes."""
        check_is_fitted(self)
        ylabel = self.scoring if isinstance(self.scoring, str) else "score"
        return grid.plot(
            self.scores_, self.path_, self._index, ylabel if self.scoring else "accuracy", ax
        )

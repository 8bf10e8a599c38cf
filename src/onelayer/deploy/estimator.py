"""A softmax classifier with scikit-learn's interface, solved to a certified minimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from onelayer.core.checks import check_positive
from onelayer.deploy.inputs import learning_inputs, prediction_chunks
from onelayer.deploy.linear import Scale, coefficients, fit_linear, penalty, plain_number


class SoftmaxPredictions(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Predictions of an estimator with ``classes_``, ``coef_`` and ``intercept_``."""

    device: str | None

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits of each sample (n, k); with two classes their difference (n,)."""
        check_is_fitted(self)
        chunks = prediction_chunks(self, X, self.device)
        Z: np.ndarray = torch.cat([self._logits(chunk).cpu() for chunk in chunks]).numpy()
        return Z[:, 0] if Z.shape[1] == 1 else Z

    def _logits(self, X: Tensor) -> Tensor:
        W = torch.from_numpy(self.coef_).to(X.device, X.dtype)
        return X @ W.T + torch.from_numpy(self.intercept_).to(X.device, X.dtype)

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of each sample (n,)."""
        Z = self.decision_function(X)
        best: np.ndarray = self.classes_[Z.argmax(1) if Z.ndim == 2 else (Z > 0).astype(int)]
        return best

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of each class's probability (n, k), in the order of classes_."""
        Z = torch.from_numpy(self.decision_function(X))
        if Z.ndim == 1:
            Z = torch.stack([torch.zeros_like(Z), Z], 1)
        return Z.log_softmax(1).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return each class's probability (n, k), in the order of classes_."""
        P: np.ndarray = np.exp(self.predict_log_proba(X))
        return P

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class OneLayerClassifier(SoftmaxPredictions):
    r"""Multinomial logistic regression, with a certificate of how close it is to its minimum.

    .. math:: J(W, b) = \frac{\sum_n w_n \ell_n}{\sum_n w_n} + \lambda \|W\|^2

    Arrays, tables of pandas and polars, sparse matrices and tensors are accepted. Sparse matrices
    are made dense. A tensor is solved on its own device. Predictions are NumPy arrays.

    Args:
        C: inverse strength of the penalty, as in scikit-learn: λ = 1 / (2 C Σw), and twice that
            for two classes, where scikit-learn penalises a single row. Σw includes class weights.
        l2: λ itself, instead of C.
        class_weight: ``"balanced"``, or a mapping from class to weight. Weights of classes and of
            samples multiply.
        fit_intercept: whether there is an intercept, which is not penalised.
        gap: largest distance of the cost to its minimum. Small problems end with a gradient of
            about 1e-14 in any case.
        standardise: whether to scale features to mean 0 and deviation 1 first. The penalty then
            applies to the scaled features; ``coef_`` and ``intercept_`` fit X as given.
        device: torch device to solve on; default that of a tensor X, and the CPU otherwise.

    Attributes:
        classes_: class names (k,).
        coef_: weights (k, d), or (1, d) for two classes, in the units of X as given.
        intercept_: biases (k,) or (1,). For three and more classes they sum to 0.
        gap_: certified bound on the distance of the cost to its minimum.
        cost_: J.
        l2_: λ.
        n_iter_: iterations (1,).
        n_features_in_: d.
        feature_names_in_: column names, where X has some.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> probe = OneLayerClassifier(C=1.0).fit(X, y)
        >>> probe.coef_.shape, bool(probe.gap_ < 1e-12), round(probe.score(X, y), 3)
        ((3, 4), True, 0.973)

    Source: :func:`onelayer.core.optimum.solve.solve`.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        l2: float | None = None,
        class_weight: Any = None,
        fit_intercept: bool = True,
        gap: float = 1e-6,
        standardise: bool = False,
        device: str | None = None,
    ) -> None:
        self.C = C
        self.l2 = l2
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.gap = gap
        self.standardise = standardise
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> OneLayerClassifier:
        """Find the minimum for X (n, d), y (n,) and weights of the samples (n,).

        Raises:
            ValueError: NaN or infinity in X or y; one class only; a weight that is negative, or
                weights that are all zero; a parameter outside its range.
            MemoryError: a sparse X that does not fit in memory when it is dense.

        Warns:
            UserWarning: the gap is larger than the one asked for.
        """
        gap = plain_number(self.gap)
        check_positive("gap", gap)
        X, y, weight, self.classes_ = learning_inputs(self, X, y, sample_weight, self.device)
        self.l2_ = penalty(self.C, self.l2, float(weight.sum()), len(self.classes_))
        scale = Scale(X, weight, bool(self.fit_intercept)) if self.standardise else None
        optima, W, b = fit_linear(
            X, y, weight, [self.l2_],
            gap=gap, bias=bool(self.fit_intercept), scale=scale,
        )  # fmt: skip
        self.coef_, self.intercept_ = coefficients(W[0], b[0])
        self.gap_, self.cost_ = float(optima.gap), float(optima.cost)
        self.n_iter_ = optima.iterations.cpu().numpy()
        return self

"""A softmax classifier with scikit-learn's interface, solved to a certified minimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from onelayer.core.checks import check_among, check_positive
from onelayer.core.errors import InputError
from onelayer.core.optimum.certificate import certify
from onelayer.core.optimum.data import Samples
from onelayer.core.optimum.solve import Progress
from onelayer.deploy.inputs import learning_inputs, prediction_chunks
from onelayer.deploy.linear import Scale, coefficients, fit_linear, penalty, plain_number
from onelayer.deploy.minibatch import Cycles, cost_of, train


class SoftmaxPredictions(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Predictions of an estimator with ``classes_``, and coefficients of one or two layers."""

    device: str | None

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits of each sample (n, k); with two classes their difference (n,)."""
        check_is_fitted(self)
        chunks = prediction_chunks(self, X, self.device)
        Z: np.ndarray = torch.cat([self._logits(chunk).cpu() for chunk in chunks]).numpy()
        return Z[:, 0] if Z.shape[1] == 1 else Z

    def _logits(self, X: Tensor) -> Tensor:
        if hasattr(self, "coefs_"):
            *first, last = zip(self.coefs_, self.intercepts_, strict=True)
            for W, b in first:
                X = (X @ like(W, X) + like(b, X)).relu()
            return X @ like(last[0], X) + like(last[1], X)
        return X @ like(self.coef_, X).T + like(self.intercept_, X)

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


def like(values: np.ndarray, X: Tensor) -> Tensor:
    """Return an array as a tensor of the dtype and device of X."""
    return torch.from_numpy(values).to(X.device, X.dtype)


class OneLayerClassifier(SoftmaxPredictions):
    r"""Multinomial logistic regression, with a certificate of how close it is to its minimum.

    .. math:: J(W, b) = \frac{\sum_n w_n \ell_n}{\sum_n w_n} + \lambda \|W\|^2

    With ``solver="cycles"`` a network is trained by batches instead, which may have a hidden layer.

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
        hidden: hidden units with ReLU; 0 for a linear classifier. Above 0, ``solver`` must be
            ``"cycles"``.
        solver: ``"optimum"``, the certified minimum; or ``"cycles"``, SGD on batches of 100 whose
            learning rate rises from 1e-5 to ``max_lr`` and falls again in each cycle.
        max_lr: highest learning rate of ``"cycles"``.
        step_size: updates of half a cycle. By default all cycles together take ``epochs`` epochs.
        cycles: number of cycles.
        epochs: epochs of all cycles together; by default 20, and at least 1,000 updates.
        dropout: probability that a hidden unit is left out of an update.
        random_state: seed of the initial weights, the order of batches and dropout. The optimum
            does not depend on it.
        verbose: above 0, progress is printed: the cost after each cycle, or the largest gap after
            each round of the optimum.
        device: torch device to solve on; default that of a tensor X, and the CPU otherwise.

    Attributes:
        classes_: class names (k,).
        coef_: weights (k, d), or (1, d) for two classes, in the units of X as given.
        intercept_: biases (k,) or (1,). For three and more classes the optimum's sum to 0.
        coefs_: with hidden units, instead of coef_: weights (d, h) and (h, k), or (h, 1).
        intercepts_: with hidden units: biases (h,) and (k,), or (1,).
        gap_: certified bound on the distance of the cost to its minimum; absent with hidden units.
        cost_: J.
        l2_: λ.
        n_iter_: iterations, or updates (1,).
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
        hidden: int = 0,
        solver: str = "optimum",
        max_lr: float = 0.1,
        step_size: int | None = None,
        cycles: int = 1,
        epochs: int | None = None,
        dropout: float = 0.0,
        random_state: Any = None,
        verbose: int = 0,
        device: str | None = None,
    ) -> None:
        self.C = C
        self.l2 = l2
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.gap = gap
        self.standardise = standardise
        self.hidden = hidden
        self.solver = solver
        self.max_lr = max_lr
        self.step_size = step_size
        self.cycles = cycles
        self.epochs = epochs
        self.dropout = dropout
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> OneLayerClassifier:
        """Find the minimum for X (n, d), y (n,) and weights of the samples (n,).

        Raises:
            ValueError: NaN or infinity in X or y; one class only; a weight that is negative, or
                weights that are all zero; a parameter outside its range.
            MemoryError: a sparse X that does not fit in memory when it is dense.
            RuntimeError: training by cycles has diverged.

        Warns:
            UserWarning: the gap is larger than the one asked for.
        """
        gap = plain_number(self.gap)
        check_positive("gap", gap)
        asked = self._cycles()
        X, y, weight, self.classes_ = learning_inputs(self, X, y, sample_weight, self.device)
        # A hidden layer's penalty is that of scikit-learn's several rows, for two classes too.
        rows = max(3, len(self.classes_)) if asked.hidden else len(self.classes_)
        self.l2_ = penalty(self.C, self.l2, float(weight.sum()), rows)
        scale = Scale(X, weight, bool(self.fit_intercept)) if self.standardise else None
        for name in ("coef_", "intercept_", "coefs_", "intercepts_", "gap_"):
            self.__dict__.pop(name, None)  # of an earlier fit with other arguments
        if self.solver == "cycles":
            self._train(X, y, weight, asked, scale)
        else:
            self._solve(X, y, weight, gap, scale)
        return self

    def _cycles(self) -> Cycles:
        """Return the checked arguments of a training by cycles."""
        check_among("solver", self.solver, ("optimum", "cycles"))
        names = ("hidden", "dropout", "max_lr", "step_size", "cycles", "epochs")
        asked = Cycles(**{name: plain_number(getattr(self, name)) for name in names})
        if asked.hidden and self.solver == "optimum":
            raise InputError(
                f'hidden is {asked.hidden}, but solver="optimum" is for linear classifiers, whose '
                'cost is convex. Set solver="cycles", or hidden=0.'
            )
        if asked.hidden and not self.fit_intercept:
            raise InputError(
                "fit_intercept is False, but a network with hidden units has biases. Leave it True."
            )
        return asked

    def _solve(self, X: Tensor, y: Tensor, weight: Tensor, gap: float, scale: Scale | None) -> None:
        optima, W, b = fit_linear(
            X, y, weight, [self.l2_], gap=gap, bias=bool(self.fit_intercept), scale=scale,
            report=print_gap if plain_number(self.verbose) > 0 else None,
        )  # fmt: skip
        self.coef_, self.intercept_ = coefficients(W[0], b[0])
        self.gap_, self.cost_ = float(optima.gap), float(optima.cost)
        self.n_iter_ = optima.iterations.cpu().numpy()

    def _train(
        self, X: Tensor, y: Tensor, weight: Tensor, asked: Cycles, scale: Scale | None
    ) -> None:
        X = X if scale is None else scale.scaled(X)
        k, bias = len(self.classes_), bool(self.fit_intercept)
        seed = int(check_random_state(self.random_state).randint(2**31))
        parameters, updates = train(
            X, y, weight, self.l2_, asked, k,
            bias=bias, seed=seed, verbose=plain_number(self.verbose),
        )  # fmt: skip
        self.cost_ = cost_of(X, y, weight, self.l2_, parameters)
        self.n_iter_ = np.array([updates])
        first = parameters[0], parameters[1]
        W, b = first if scale is None else scale.unscaled(*first)
        if not asked.hidden:
            self.coef_, self.intercept_ = coefficients(W[0], b[0])
            samples = Samples(X, y, k, weight[None], y.new_zeros(1), bias=bias)
            self.gap_ = float(certify(samples, *first, X.new_tensor([self.l2_])).gap)
            return
        last, last_bias = coefficients(parameters[2][0], parameters[3][0])
        self.coefs_ = [W[0].T.cpu().numpy(), last.T]
        self.intercepts_ = [b[0].cpu().numpy(), last_bias]


def print_gap(now: Progress) -> None:
    """Print the largest gap after each round of the solver."""
    if now.round is not None:
        print(f"round {now.round}: largest gap {float(now.gap.max()):.1e}", flush=True)

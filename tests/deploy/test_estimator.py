"""OneLayerClassifier beside LogisticRegression: coefficients, weights, inputs and messages."""

import importlib
import pickle
import sys

import numpy as np
import pytest
import torch

from onelayer.core.errors import InputError
from tests.support.processes import Forked

pytest.importorskip("sklearn")

import scipy.sparse as sp
from sklearn.base import clone
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
    make_classification,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_dataframe_column_names_consistency

from onelayer.sklearn import OneLayerClassifier


def imbalanced(k, seed):
    shares = np.r_[0.8, np.full(k - 1, 0.2 / (k - 1))]
    return make_classification(
        400, 12, n_informative=6, n_classes=k, weights=list(shares), flip_y=0.05, random_state=seed
    )


def read(load):
    return load(return_X_y=True)


SETS = {
    "iris": lambda: read(load_iris),
    "two irises": lambda: tuple(part[50:] for part in read(load_iris)),
    "wine": lambda: read(load_wine),
    "digits": lambda: tuple(part[:500] for part in read(load_digits)),
    "breast cancer": lambda: read(load_breast_cancer),
    "words": lambda: (read(load_iris)[0], np.array(["b", "c", "a"])[read(load_iris)[1]]),
    **{f"imbalanced {k}": lambda k=k: imbalanced(k, seed=k) for k in (2, 3, 4, 6)},
}
X, y = load_iris(return_X_y=True)
WEIGHT = np.random.RandomState(0).randint(0, 4, len(y)).astype(float)


def theirs(C=1.0, **more):
    return LogisticRegression(
        C=C, solver="newton-cholesky", tol=1e-14, max_iter=10_000, **more
    )  # fmt: skip


def assert_same_coefficients(ours, other):
    assert ours.coef_.shape == other.coef_.shape
    assert ours.intercept_.shape == other.intercept_.shape
    assert np.allclose(ours.coef_, other.coef_, rtol=0, atol=1e-7)
    intercepts = [
        e.intercept_ - e.intercept_.mean() * (len(e.intercept_) > 1) for e in (ours, other)
    ]
    assert np.allclose(*intercepts, rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("ignore::UserWarning")  # their last step may not converge, at 1e-14
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("name", SETS)
def test_coefficients_are_scikit_learns(name, class_weight):
    X, y = SETS[name]()
    w = np.random.RandomState(1).uniform(0.1, 3, len(y))
    ours = OneLayerClassifier(C=0.7, class_weight=class_weight).fit(X, y, w)
    # Until 1.8 scikit-learn counted samples without their weights for "balanced".
    mapping = class_weight
    if class_weight:
        totals = {name: w[y == name].sum() for name in np.unique(y)}
        mapping = {name: w.sum() / len(totals) / total for name, total in totals.items()}
    assert_same_coefficients(ours, theirs(0.7, class_weight=mapping).fit(X, y, w))
    assert 0 <= ours.gap_ < 1e-12


def test_without_an_intercept_and_with_a_mapping():
    more = {"fit_intercept": False, "class_weight": {0: 1.0, 1: 5.0, 2: 0.5}}
    assert_same_coefficients(OneLayerClassifier(**more).fit(X, y), theirs(**more).fit(X, y))


def test_predictions_agree():
    for labels in (y, y == 1):
        ours, other = OneLayerClassifier().fit(X, labels), theirs().fit(X, labels)
        assert (ours.predict(X) == other.predict(X)).all()
        for name in ("predict_proba", "predict_log_proba"):
            assert np.allclose(getattr(ours, name)(X), getattr(other, name)(X), atol=1e-7)
        assert ours.score(X, labels) == other.score(X, labels)
        assert ours.decision_function(X).shape == other.decision_function(X).shape


def test_weights_of_two_are_repeated_samples():
    repeated = np.repeat(np.arange(len(y)), WEIGHT.astype(int))
    for class_weight in (None, "balanced"):
        ours = OneLayerClassifier(class_weight=class_weight).fit(X, y, WEIGHT)
        other = OneLayerClassifier(class_weight=class_weight).fit(X[repeated], y[repeated])
        assert np.allclose(ours.coef_, other.coef_, rtol=0, atol=1e-10)
        assert np.allclose(ours.intercept_, other.intercept_, rtol=0, atol=1e-10)


@pytest.mark.parametrize("intercept", [True, False])
def test_standardised_features(intercept):
    ours = OneLayerClassifier(standardise=True, fit_intercept=intercept).fit(X * 1e3, y, WEIGHT)
    scaler = StandardScaler(with_mean=intercept)
    if intercept:
        scaler.fit(X, sample_weight=WEIGHT)
    else:
        scaler.fit(X)
        scaler.scale_ = np.sqrt(np.average(X**2, axis=0, weights=WEIGHT))
    other = theirs(fit_intercept=intercept).fit(scaler.transform(X), y, WEIGHT)
    assert np.allclose(
        ours.decision_function(X * 1e3)[:, 1:] - ours.decision_function(X * 1e3)[:, :1],
        other.decision_function(scaler.transform(X))[:, 1:]
        - other.decision_function(scaler.transform(X))[:, :1],
        atol=1e-6,
    )  # fmt: skip


def test_l2_is_the_penalty_itself():
    ours = OneLayerClassifier(l2=1 / (2 * 0.3 * len(y))).fit(X, y)
    assert_same_coefficients(ours, OneLayerClassifier(C=0.3).fit(X, y))
    assert OneLayerClassifier(C=0.3).fit(X, y, 5 * np.ones(len(y))).l2_ == pytest.approx(
        ours.l2_ / 5
    )


def made(kind):
    if kind == "pandas":
        return pytest.importorskip("pandas").DataFrame(X, columns=list("abcd"))
    if kind == "polars":
        return pytest.importorskip("polars").DataFrame(X, schema=list("abcd"))
    if kind == "tensor":
        return torch.from_numpy(X)
    return {"csr": sp.csr_matrix, "coo": sp.coo_array, "fortran": np.asfortranarray}[kind](X)


@pytest.mark.parametrize("kind", ["pandas", "polars", "tensor", "csr", "coo", "fortran"])
def test_every_kind_of_table(kind):
    table, expected = made(kind), OneLayerClassifier().fit(X, y)
    ours = OneLayerClassifier().fit(table, torch.from_numpy(y) if kind == "tensor" else y)
    assert np.array_equal(ours.coef_, expected.coef_)
    assert np.array_equal(ours.predict_proba(table), expected.predict_proba(X))
    assert hasattr(ours, "feature_names_in_") == (kind in ("pandas", "polars"))


@pytest.mark.filterwarnings("default")
def test_column_names_are_compared():
    check_dataframe_column_names_consistency("OneLayerClassifier", OneLayerClassifier())


def test_low_precision_and_single_precision():
    for dtype in (torch.float32, torch.bfloat16):
        ours = OneLayerClassifier().fit(torch.from_numpy(X).to(dtype), y)
        assert ours.score(torch.from_numpy(X).to(dtype), y) > 0.95
    single = OneLayerClassifier().fit(X.astype(np.float32), y)
    assert np.allclose(single.coef_, OneLayerClassifier().fit(X, y).coef_, atol=1e-5)


def test_clone_pickle_and_pipeline():
    ours = make_pipeline(StandardScaler(), OneLayerClassifier(C=2.0)).fit(X, y)
    again = pickle.loads(pickle.dumps(ours))
    assert np.array_equal(again.predict_proba(X), ours.predict_proba(X))
    assert clone(ours[-1]).get_params() == ours[-1].get_params()


def test_sparse_features_that_do_not_fit(monkeypatch):
    monkeypatch.setattr("onelayer.deploy.inputs.free_memory", lambda device: 100)
    with pytest.raises(MemoryError, match=r"X is sparse, .* GB are free. Choose fewer features"):
        OneLayerClassifier().fit(sp.csr_matrix(X), y)


MISSING = X.copy()
MISSING[3, 1] = np.nan
NO_CLASS = np.where(y == 1, 0.0, 1.0)


@pytest.mark.parametrize(
    ("parameters", "fit", "words"),
    [
        ({}, {"X": MISSING}, "Input X contains NaN"),
        ({}, {"y": np.where(y == 0, np.nan, y)}, "y contains NaN"),
        ({}, {"y": 0 * y}, "one class only, .*0.*at least two"),
        ({}, {"y": X[:, 0]}, "Unknown label type"),
        ({}, {"y": y[1:]}, "inconsistent numbers of samples"),
        ({}, {"sample_weight": 0 * WEIGHT}, "[Ss]ample.weight.*zero"),
        ({}, {"sample_weight": WEIGHT - 1}, "Negative values in sample_weight"),
        ({}, {"sample_weight": WEIGHT[1:]}, "sample_weight.shape"),
        ({}, {"sample_weight": WEIGHT * np.nan}, "contains NaN"),
        ({}, {"sample_weight": NO_CLASS}, "class .*1.* have weight zero"),
        ({"class_weight": {0: -1.0}}, {}, "class_weight has the value -1"),
        ({"C": 0}, {}, "C must be a finite number > 0"),
        ({"C": np.inf}, {}, "C is inf"),
        ({"C": "1"}, {}, "C must be"),
        ({"l2": -1.0}, {}, "l2 must be"),
        ({"gap": 0.0}, {}, "gap must be"),
    ],
)
def test_what_cannot_be_learned_is_refused(parameters, fit, words):
    with pytest.raises(ValueError, match=words):
        OneLayerClassifier(**parameters).fit(**{"X": X, "y": y, **fit})


def test_another_number_of_features_is_refused():
    with pytest.raises(ValueError, match="expecting 4 features"):
        OneLayerClassifier().fit(X, y).predict(X[:, :3])


def test_the_bound_holds_for_a_problem_that_is_not_polished(monkeypatch):
    monkeypatch.setattr("onelayer.core.optimum.polish.WORK", 0)
    rough = OneLayerClassifier(gap=1e-3).fit(X, y)
    monkeypatch.undo()
    best = OneLayerClassifier().fit(X, y)
    assert 0 < rough.cost_ - best.cost_ <= rough.gap_ <= 1e-3


def test_an_error_is_an_input_error():
    with pytest.raises(InputError, match="one class only"):
        OneLayerClassifier().fit(X, 0 * y)


def test_tensors_of_a_device_are_checked_there(monkeypatch):
    """The way of tensors on a GPU, tried with those of the CPU."""
    monkeypatch.setattr(
        "onelayer.deploy.inputs.is_on_device", lambda X: isinstance(X, torch.Tensor)
    )
    monkeypatch.setattr("onelayer.deploy.inputs.on_cpu", lambda y: y)
    table = torch.from_numpy(X).requires_grad_()
    ours = OneLayerClassifier().fit(table, y, WEIGHT)
    assert np.array_equal(ours.coef_, OneLayerClassifier().fit(X, y, WEIGHT).coef_)
    assert np.array_equal(ours.predict(table), ours.predict(X))
    with pytest.raises(ValueError, match="expecting 4 features"):
        ours.predict(table[:, :2])
    with pytest.raises(ValueError, match=r"X has shape \(150, 4\), .* without NaN"):
        ours.fit(torch.from_numpy(MISSING), y)
    with pytest.raises(ValueError, match=r"sample_weight\.shape"):
        ours.fit(table, y, WEIGHT[1:])


def import_without_scikit_learn():
    sys.modules["sklearn"] = None
    for name in [name for name in sys.modules if name.startswith(("sklearn.", "onelayer.sk"))]:
        del sys.modules[name]
    importlib.import_module("onelayer.sklearn")


def test_a_missing_scikit_learn_is_one_message(tmp_path):
    process = Forked(import_without_scikit_learn, folder=tmp_path)
    assert process.wait() == 1
    assert process.err.strip().splitlines()[-1] == (
        'ImportError: onelayer.sklearn needs scikit-learn: pip install "onelayer[sklearn]"'
    )

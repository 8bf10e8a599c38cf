"""OneLayerClassifier(solver="cycles"): networks trained by batches."""

import pickle

import numpy as np
import pytest
import torch

from onelayer.core.cycles import triangular
from onelayer.core.errors import TrainingError
from onelayer.core.network import initial_parameters
from onelayer.data.loader import epoch_order

pytest.importorskip("sklearn")

import sklearn
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from onelayer.sklearn import OneLayerClassifier, OneLayerClassifierCV

X, y = load_iris(return_X_y=True)
CYCLES = {"solver": "cycles", "epochs": 20, "random_state": 0}


def trained(**more):
    return OneLayerClassifier(**{**CYCLES, **more}).fit(X, y)


def test_an_update_is_sgd_on_the_weighted_cost():
    w = np.random.RandomState(0).uniform(0, 3, len(y))
    ours = OneLayerClassifier(**CYCLES, l2=0.01, max_lr=0.05).fit(X, y, w)
    seed = int(np.random.RandomState(0).randint(2**31))
    W, b = (p[0].requires_grad_() for p in initial_parameters([seed], 0, 4, 3).values())
    scaled = torch.from_numpy(w / w.mean())
    for step in range(int(ours.n_iter_[0])):
        epoch, at = divmod(step, 2)
        rows = epoch_order(len(y), seed, epoch).split(100)[at]
        losses = torch.nn.functional.cross_entropy(
            torch.from_numpy(X)[rows] @ W.T + b, torch.from_numpy(y)[rows], reduction="none"
        )
        J = (scaled[rows] * losses).mean() + 0.01 * W.square().sum()
        for p, g in zip((W, b), torch.autograd.grad(J, (W, b)), strict=True):
            p.data -= triangular(step, 1e-5, 0.05, 20) * g
    assert ours.n_iter_[0] == 40
    np.testing.assert_allclose(ours.coef_, W.detach().numpy(), rtol=1e-9)
    np.testing.assert_allclose(ours.intercept_, b.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("labels", [y, y == 1], ids=["three classes", "two classes"])
def test_the_gap_bounds_the_distance_to_the_minimum(labels):
    ours = OneLayerClassifier(**CYCLES, l2=0.01).fit(X, labels)
    best = OneLayerClassifier(l2=0.01).fit(X, labels)
    assert 0 < ours.cost_ - best.cost_ <= ours.gap_
    assert ours.coef_.shape == best.coef_.shape


@pytest.mark.parametrize("labels", [y, y == 1], ids=["three classes", "two classes"])
@pytest.mark.parametrize("standardise", [False, True])
def test_a_hidden_layer_predicts_by_its_coefficients(labels, standardise):
    ours = OneLayerClassifier(**CYCLES, hidden=7, dropout=0.1, standardise=standardise)
    ours.fit(X, labels)
    (W1, W2), (b1, b2) = ours.coefs_, ours.intercepts_
    Z = np.maximum(0, X @ W1 + b1) @ W2 + b2
    np.testing.assert_allclose(ours.decision_function(X), Z.squeeze(), rtol=1e-9, atol=1e-9)
    assert W1.shape == (4, 7)
    assert W2.shape == (7, 3 if labels is y else 1)
    assert not hasattr(ours, "coef_")
    assert not hasattr(ours, "gap_")


def test_hidden_units_learn_what_a_line_cannot():
    images, digits = load_digits(return_X_y=True)
    linear = OneLayerClassifier(**CYCLES).fit(images / 16, digits)
    hidden = OneLayerClassifier(**CYCLES, hidden=50, max_lr=0.5).fit(images / 16, digits)
    assert hidden.score(images / 16, digits) > linear.score(images / 16, digits) > 0.9


def test_the_seed_decides():
    first, again, other = trained(), trained(), trained(random_state=1)
    assert np.array_equal(first.coef_, again.coef_)
    assert not np.allclose(first.coef_, other.coef_)


def test_another_fit_leaves_nothing_of_the_first():
    ours = trained(hidden=5)
    ours.set_params(hidden=0, solver="optimum").fit(X, y)
    assert not hasattr(ours, "coefs_")
    assert np.array_equal(ours.coef_, OneLayerClassifier().fit(X, y).coef_)


def test_clone_and_pickle():
    ours = trained(hidden=5)
    assert clone(ours).get_params() == ours.get_params()
    again = pickle.loads(pickle.dumps(ours))
    assert np.array_equal(again.predict_proba(X), ours.predict_proba(X))


def test_progress_is_printed(capsys):
    trained(cycles=2, verbose=1)
    words = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in words] == ["update 20 of 40", "update 40 of 40"]
    OneLayerClassifier(verbose=1).fit(X, y)
    assert "largest gap" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"solver": "sgd"}, "solver must be one of optimum, cycles, not 'sgd'"),
        ({"hidden": 5, "solver": "optimum"}, "hidden is 5, but solver=.optimum. is for linear"),
        ({"hidden": -1}, "hidden must be a whole number >= 0"),
        ({"hidden": 5, "fit_intercept": False}, "fit_intercept is False, but a network with"),
        ({"dropout": 0.5}, "there are no hidden units to drop"),
        ({"step_size": 10}, "step_size is 10 and epochs is 20: both set the length"),
        ({"max_lr": np.nan}, "max_lr must be a finite number > 0"),
        ({"cycles": 0}, "cycles must be a whole number >= 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(parameters, words):
    with pytest.raises(ValueError, match=words):
        trained(**parameters)


def test_a_training_that_diverges_is_an_error():
    with pytest.raises(TrainingError, match=r"has diverged: .* max_lr = 1e\+10"):
        trained(max_lr=1e10, l2=1.0)


@pytest.mark.parametrize("estimator", [OneLayerClassifier(), OneLayerClassifierCV(Cs=3, cv=3)])
def test_weights_are_routed_through_a_pipeline(estimator):
    w = np.random.RandomState(0).randint(0, 4, len(y)).astype(float)
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, clone(estimator).set_fit_request(sample_weight=True))
        pipeline.fit(X, y, sample_weight=w)
    expected = clone(estimator).fit(StandardScaler().fit_transform(X), y, w)
    assert np.array_equal(pipeline[-1].coef_, expected.coef_)


def test_weights_are_routed_through_a_grid_search():
    w = np.random.RandomState(0).uniform(0.5, 2, len(y))
    with sklearn.config_context(enable_metadata_routing=True):
        asked = OneLayerClassifier().set_fit_request(sample_weight=True)
        asked.set_score_request(sample_weight=True)
        search = GridSearchCV(asked, {"C": [0.1, 1.0]}, cv=3).fit(X, y, sample_weight=w)
    expected = OneLayerClassifier(C=search.best_params_["C"]).fit(X, y, w)
    assert np.array_equal(search.best_estimator_.coef_, expected.coef_)

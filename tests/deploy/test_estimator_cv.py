"""OneLayerClassifierCV: each fold and λ alone, scikit-learn's choice, rules, resamples."""

import pickle
from inspect import signature

import numpy as np
import pytest
import torch

from onelayer.deploy.grid import choose

pytest.importorskip("sklearn")

from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import get_scorer
from sklearn.model_selection import GroupKFold, ShuffleSplit, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from onelayer.sklearn import OneLayerClassifier, OneLayerClassifierCV

X, y = load_wine(return_X_y=True)
X = StandardScaler().fit_transform(X)
CS = [0.001, 0.01, 0.1, 1.0]
W = np.random.RandomState(0).uniform(0.2, 2, len(y))
TIGHT = {"Cs": CS, "gap": 1e-10}


@pytest.mark.parametrize("scoring", ["accuracy", "balanced_accuracy", "neg_log_loss", "f1_macro"])
@pytest.mark.parametrize("k", [2, 3])
def test_scores_are_those_of_each_fold_alone(scoring, k):
    names = np.array(["a", "b", "c"])[y % k]
    ours = OneLayerClassifierCV(**TIGHT, cv=3, scoring=scoring).fit(X, names)
    folds = list(StratifiedKFold(3).split(X, names))
    for i, (train, test) in enumerate(folds):
        for j, C in enumerate(CS):
            alone = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10)
            alone.fit(X[train], names[train])
            score = get_scorer(scoring)(alone, X[test], names[test])
            assert ours.scores_[i, j] == pytest.approx(score, abs=1e-4)
    assert ours.scores_.mean(0).max() == ours.scores_.mean(0)[CS.index(pytest.approx(ours.C_))]


def test_it_chooses_and_refits_as_scikit_learn_does():
    newer = {"l1_ratios": (0,), "use_legacy_attributes": False}  # from scikit-learn 1.8 on
    known = signature(LogisticRegressionCV).parameters
    other = LogisticRegressionCV(
        Cs=CS, cv=4, solver="newton-cg", tol=1e-12, scoring="neg_log_loss",
        **(newer if newer.keys() <= known.keys() else {}),
    ).fit(X, y)  # fmt: skip
    ours = OneLayerClassifierCV(**TIGHT, cv=4, scoring="neg_log_loss").fit(X, y)
    assert pytest.approx(float(np.ravel(other.C_)[0])) == ours.C_
    assert np.allclose(ours.coef_, other.coef_, rtol=0, atol=1e-7)
    assert np.allclose(ours.predict_proba(X), other.predict_proba(X), rtol=0, atol=1e-7)


def test_the_path_is_that_of_all_samples():
    more = {"class_weight": "balanced", "standardise": True}
    ours = OneLayerClassifierCV(**TIGHT, cv=3, **more).fit(X, y, W)
    for i, C in enumerate(CS):
        alone = OneLayerClassifier(C=C, **more).fit(X, y, W)
        assert np.allclose(ours.path_.coef[i], alone.coef_, atol=1e-3)
        assert ours.path_.C[i] == pytest.approx(C)
        assert ours.path_.l2[i] == pytest.approx(alone.l2_)
        assert ours.path_.cost[i] == pytest.approx(alone.cost_, abs=1e-9)
    assert (ours.path_.gap <= 1e-10).all()
    assert (ours.fold_gap_ <= 1e-10).all()
    chosen = OneLayerClassifier(C=ours.C_, **more).fit(X, y, W)
    assert np.allclose(ours.coef_, chosen.coef_, rtol=0, atol=1e-9)


def test_l2s_are_the_same_for_all_folds():
    by_l2 = OneLayerClassifierCV(l2s=[0.01, 0.1], cv=3).fit(X, y)
    assert by_l2.path_.l2.tolist() == [0.01, 0.1]
    alone = OneLayerClassifier(l2=by_l2.l2_).fit(X, y)
    assert np.allclose(by_l2.coef_, alone.coef_, rtol=0, atol=1e-9)
    assert OneLayerClassifier(C=by_l2.C_).fit(X, y).l2_ == pytest.approx(by_l2.l2_)


def test_without_a_refit_coefficients_are_means_over_folds():
    ours = OneLayerClassifierCV(**TIGHT, cv=3, refit=False).fit(X, y)
    each = [
        OneLayerClassifier(C=ours.C_).fit(X[train], y[train]).coef_
        for train, _ in StratifiedKFold(3).split(X, y)
    ]
    assert np.allclose(ours.coef_, np.mean(each, 0), atol=1e-3)


def test_splitters_groups_and_repeated_samples():
    groups = np.arange(len(y)) % 6
    by_groups = OneLayerClassifierCV(**TIGHT, cv=GroupKFold(3)).fit(X, y, groups=groups)
    splits = list(GroupKFold(3).split(X, y, groups))
    by_list = OneLayerClassifierCV(**TIGHT, cv=splits).fit(X, y)
    assert np.array_equal(by_groups.scores_, by_list.scores_)
    twice = [(np.r_[train, train[:40]], test) for train, test in splits]
    ours = OneLayerClassifierCV(**TIGHT, cv=twice, scoring="neg_log_loss").fit(X, y)
    train, test = twice[0]
    alone = OneLayerClassifier(C=CS[2]).fit(X[train], y[train])
    score = get_scorer("neg_log_loss")(alone, X[test], y[test])
    assert ours.scores_[0, 2] == pytest.approx(score, abs=1e-4)
    assert OneLayerClassifierCV(**TIGHT, cv=ShuffleSplit(2)).fit(X, y).scores_.shape == (2, 4)


def test_scores_are_weighted_as_samples_are():
    ours = OneLayerClassifierCV(**TIGHT, cv=3).fit(X, y, W)
    train, test = next(StratifiedKFold(3).split(X, y))
    alone = OneLayerClassifier(C=CS[0]).fit(X[train], y[train], W[train])
    assert ours.scores_[0, 0] == pytest.approx(alone.score(X[test], y[test], W[test]), abs=1e-12)


def test_rules():
    scores = np.array([[0.5, 0.7, 0.8, 0.7], [0.6, 0.9, 0.9, 0.9]])
    strength = np.array([4.0, 3.0, 2.0, 1.0])
    assert choose(scores, strength, "best") == 2
    assert choose(scores, strength, "one_se") == 1
    assert choose(scores[:, ::-1], strength[::-1], "one_se") == 2
    assert choose(scores[:1], strength, "one_se") == 2
    assert choose(np.ones((2, 4)), strength, "best") == 0


def test_intervals_of_resamples():
    train, test = next(StratifiedKFold(2).split(X, y))
    ours = OneLayerClassifierCV(Cs=CS, cv=3, bootstrap=40, random_state=0).fit(X[train], y[train])
    assert (ours.bootstrap_gap_ <= 1e-6).all()
    for found in (ours.score_interval_, ours.score_interval(X[test], y[test])):
        assert 0.8 < found.accuracy[0] < found.accuracy[1] <= 1
        assert 0 < found.log_loss[0] < found.log_loss[1] < 0.5
    accuracy = ours.score(X[test], y[test])
    low, high = ours.score_interval(X[test], y[test]).accuracy
    assert low <= accuracy <= high
    narrow = ours.score_interval(X[test], y[test], level=0.5).log_loss
    wide = ours.score_interval(X[test], y[test]).log_loss
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    again = pickle.loads(pickle.dumps(ours))
    assert again.score_interval(X[test], y[test]) == ours.score_interval(X[test], y[test])
    with pytest.raises(ValueError, match="label 5, which is none of the 3 classes"):
        ours.score_interval(X, y + 5)
    with pytest.raises(ValueError, match=r"bootstrap is 0"):
        OneLayerClassifierCV(Cs=CS, cv=3).fit(X, y).score_interval(X, y)


def test_a_resample_is_solved_as_if_it_were_alone(monkeypatch):
    counts = np.random.RandomState(3).randint(0, 3, (2, len(y))).astype(float)
    monkeypatch.setattr("onelayer.deploy.estimator_cv.resampled", lambda *_: counts)
    ours = OneLayerClassifierCV(**TIGHT, cv=3, bootstrap=2).fit(X, y)
    for W_, row in zip(ours._networks[0], counts, strict=True):
        alone = OneLayerClassifier(l2=ours.l2_).fit(X, y, row)
        assert np.allclose(W_, alone.coef_, atol=1e-3)


def test_tensors_and_the_plot():
    ours = OneLayerClassifierCV(Cs=CS, cv=3).fit(torch.from_numpy(X), torch.from_numpy(y))
    expected = OneLayerClassifierCV(Cs=CS, cv=3).fit(X, y)
    assert np.array_equal(ours.scores_, expected.scores_)
    ax = ours.plot_path()
    assert ax.get_xlabel() == "λ"
    assert ax.get_ylabel() == "accuracy"
    x, height = ax.containers[0].lines[0].get_data()
    assert np.allclose(np.sort(ours.path_.l2), x)
    assert np.allclose(height, ours.scores_.mean(0)[::-1])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"Cs": 0}, "Cs must be a whole number"),
        ({"Cs": []}, "Cs must list at least one"),
        ({"Cs": [1.0, 1.0]}, "none twice"),
        ({"Cs": [1.0, -1.0]}, "each of Cs must be"),
        ({"l2s": "many"}, "l2s is 'many'"),
        ({"rule": "first"}, "rule must be one of best, one_se"),
        ({"scoring": "beauty"}, "beauty"),
        ({"bootstrap": -1}, "bootstrap must be"),
        ({"gap": None}, "gap must be"),
        (
            {"cv": [(np.flatnonzero(y > 0), np.flatnonzero(y == 0))]},
            "fold 0 .* no sample of class 0. Choose",
        ),
        ({"cv": []}, "cv has no folds"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(parameters, words):
    with pytest.raises(ValueError, match=words):
        OneLayerClassifierCV(**parameters).fit(X, y)

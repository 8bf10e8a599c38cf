"""scikit-learn's own checks of estimators: all of them, without an exception."""

import warnings

import pytest

pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import parametrize_with_checks

from onelayer.sklearn import OneLayerClassifier, OneLayerClassifierCV


@pytest.mark.filterwarnings("default")
@parametrize_with_checks(
    [
        OneLayerClassifier(),
        OneLayerClassifierCV(Cs=3, cv=2),
        OneLayerClassifier(solver="cycles", epochs=100),
        OneLayerClassifier(solver="cycles", epochs=100, hidden=8),
    ]
)
def test_scikit_learns_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)

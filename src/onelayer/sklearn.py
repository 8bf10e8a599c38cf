"""Estimators for scikit-learn's users; needs the extra ``sklearn``."""

from __future__ import annotations

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError:
    raise ImportError(
        'onelayer.sklearn needs scikit-learn: pip install "onelayer[sklearn]"'
    ) from None

from onelayer.deploy.estimator import OneLayerClassifier
from onelayer.deploy.estimator_cv import OneLayerClassifierCV

__all__ = ["OneLayerClassifier", "OneLayerClassifierCV"]

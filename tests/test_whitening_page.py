"""docs/whitening.md, line by line, with scikit-learn's digits in place of CIFAR-10."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import onelayer
from tests.support.pages import run_page

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits

SHORT = [
    "--model.hidden=50", "--model.seeds=[0,1]", "--schedule.step_size=300", "--data.shift=1",
    "--curves.per_cycle=2",
]  # fmt: skip


def digits(val_size):
    """Standardised splits of the digits, as CIFAR10DataModule has those of its images."""
    X, y = (torch.from_numpy(T) for T in load_digits(return_X_y=True))
    X, y = ((X - X.mean(0)) / X.std(0).clamp(min=0.5)).float(), y.long()
    rows = {"train": slice(0, 1200), "val": slice(1200, 1400), "test": slice(1400, None)}
    return SimpleNamespace(
        shape=(1, 8, 8),
        statistics=SimpleNamespace(mean=X.mean(0), std=X.std(0)),
        classes=tuple("0123456789"),
        tensors=lambda split: (X[rows[split]], y[rows[split]]),
    )


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_every_line_of_the_page_runs_in_its_order(monkeypatch):
    monkeypatch.setattr(onelayer, "CIFAR10DataModule", digits)
    assert run_page("whitening.md", {"fit": SHORT})[1] == 1
    X = np.load("white_train.npz")["X"]
    assert X.shape == (1200, 1, 8, 8)
    both = np.concatenate([X, X[..., ::-1]]).reshape(-1, 64).astype(np.float64)
    variances = np.linalg.eigvalsh(both.T @ both / len(both))
    assert variances.mean() == pytest.approx(1, rel=1e-4)
    given = np.linalg.eigvalsh(np.cov(digits(0).tensors("train")[0].numpy().T))
    assert variances.max() / variances.mean() < 0.5 * given.max() / given.mean()
    summary = json.loads(Path("lightning_logs/wide/version_0/summary.json").read_text())
    assert summary["members"][0]["test"]["accuracy"] > 0.5  # of ten classes

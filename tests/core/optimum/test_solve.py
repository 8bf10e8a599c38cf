"""Optima against scikit-learn and scipy, and what is refused."""

import numpy as np
import pytest
import torch
from torch import distributed

import onelayer
from onelayer.core.errors import InputError
from onelayer.core.optimum.solve import solve
from tests.support.cases import linear_problem as problem
from tests.support.processes import Forked

L2 = [0.003, 0.03, 0.3]


def centred(b):
    return b - b.mean(-1, keepdim=True)


@pytest.mark.parametrize("solver", ["newton-cholesky", "lbfgs"])
@pytest.mark.parametrize("k", [2, 3])
def test_scikit_learn_finds_the_same(solver, k):
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y = problem(k=k)
    path = solve(X, y, L2, gap=1e-15)
    for i, l2 in enumerate(L2):
        # Of two classes scikit-learn penalises the difference of the weights alone: half as much.
        C = 1 / (2 * l2 * len(X)) if k > 2 else 1 / (l2 * len(X))
        # Centred, which moves the intercept alone: lbfgs stops by the gain of a step, and where
        # features lie far from 0, in the last digits of the cost, at weights still 4e-6 away.
        theirs = linear_model.LogisticRegression(C=C, solver=solver, tol=1e-12, max_iter=10000)
        theirs.fit(X - X.mean(0), y)
        coefficients = torch.tensor(theirs.coef_)
        intercept = torch.tensor(theirs.intercept_) - coefficients @ X.mean(0)
        W, b = path.W[i], path.b[i]
        if k == 2:
            W, b = W[1:] - W[:1], b[1:] - b[:1]
        else:
            b = centred(b)
        assert torch.allclose(W, coefficients, atol=1e-6)
        close = 1e-5 if solver == "newton-cholesky" else 1e-4  # lbfgs stops a little earlier
        assert torch.allclose(b, intercept if k == 2 else centred(intercept), atol=close)


def test_scipys_trust_region_finds_the_same():
    minimize = pytest.importorskip("scipy.optimize").minimize
    X, y = problem(n=80, d=4)
    k, d, l2 = 3, 4, 0.02

    def cost(θ):
        W, b = θ[: k * d].view(k, d), θ[k * d :]
        loss = torch.nn.functional.cross_entropy(X @ W.T + b, y)
        return loss + l2 * W.square().sum() + 1e-9 * b.sum() ** 2  # else b is not one point

    def jac(θ):
        return torch.func.grad(cost)(torch.tensor(θ)).numpy()

    def hess(θ):
        return torch.autograd.functional.hessian(cost, torch.tensor(θ)).numpy()

    found = minimize(
        lambda θ: float(cost(torch.tensor(θ))), np.zeros(k * d + k), jac=jac, hess=hess,
        method="trust-exact", options={"gtol": 1e-10},
    )  # fmt: skip
    path = solve(X, y, [l2], gap=1e-15)
    assert torch.allclose(path.W[0].flatten(), torch.tensor(found.x[: k * d]), atol=1e-6)
    assert float(path.cost) == pytest.approx(found.fun, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1e-4, 1e-6, 1e-12])
def test_every_gap_is_as_small_as_was_asked_for(dtype, gap):
    X, y = problem(n=300, d=8, k=4, seed=1, shift=30.0)
    path = solve(X.to(dtype), y, [1e-5, 1e-3, 0.1], gap)
    assert (path.gap <= gap).all()
    assert (path.gap >= 0).all()
    assert path.iterations.min() >= 1


def test_of_very_many_features_a_sample_is_decomposed(monkeypatch):
    X, y = problem(n=120, d=40)
    whole = solve(X, y, [0.01, 0.1], 1e-12)
    few = solve(X[:30], y[:30], [0.01, 0.1], 1e-12)
    monkeypatch.setattr("onelayer.core.optimum.curvature.MAX_FEATURES", 30)
    monkeypatch.setattr("onelayer.core.optimum.curvature.CURVATURE_SAMPLES", 30)
    wide = solve(X, y, [0.01, 0.1], 1e-12)
    assert (torch.cat([wide.gap, few.gap]) <= 1e-12).all()
    assert torch.allclose(wide.W, whole.W, atol=1e-5)


def test_rows_that_repeat_a_pattern_are_sampled_well(monkeypatch):
    X, y = problem(n=480, d=8, k=4, seed=5)
    order = torch.cat([(y == k).nonzero().squeeze(1)[:60] for k in range(4)])
    X, y = X[order], y[order]
    for module in ("curvature", "descent"):
        monkeypatch.setattr(f"onelayer.core.optimum.{module}.CURVATURE_SAMPLES", 60)
    periodic = torch.arange(len(y)) % 4 * 60 + torch.arange(len(y)) // 4 % 60
    for index in (torch.arange(len(y)), periodic[: len(y)]):
        path = solve(X[index], y[index], L2, 1e-9)
        assert (path.gap <= 1e-9).all()
        assert path.iterations.max() <= 25


def test_separable_data_have_an_optimum_with_a_penalty():
    X = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    path = onelayer.solve(X, torch.tensor([0, 0, 1, 1]), [1e-6])
    assert (path.gap <= 1e-6).all()


class Mapped:
    """Features that are no tensor: rows come a few at a time."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.device = X, X.shape, X.dtype, X.device

    def __len__(self):
        return len(self.X)

    def split(self, size):
        return (self.X[i : i + size].clone() for i in range(0, len(self.X), size))

    def index_select(self, dim, index):
        return self.X.index_select(dim, index)


def test_rows_may_stream_and_members_take_turns(monkeypatch):
    X, y = problem()
    whole = solve(X, y, L2, 1e-14)
    assert torch.allclose(solve(Mapped(X), y, L2, 1e-14).W, whole.W, atol=1e-6)
    monkeypatch.setattr("onelayer.core.optimum.data.CHUNK", 50)
    monkeypatch.setattr("onelayer.core.optimum.data.LITTLE", 0)
    monkeypatch.setattr("onelayer.core.optimum.data.SHARE", 1e-9)
    alone = solve(Mapped(X), y, L2, 1e-14)
    assert torch.allclose(alone.W, whole.W, atol=1e-6)
    assert (alone.gap <= 1e-14).all()


def test_a_fold_is_left_out_as_if_it_were_not_there():
    X, y = problem()
    folds = torch.arange(len(X)) % 3
    path = solve(X, y, L2, 1e-14, folds=folds)
    assert path.fold.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for fold in range(3):
        alone = solve(X[folds != fold], y[folds != fold], L2, 1e-14)
        mine = path.fold == fold
        assert torch.allclose(path.W[mine], alone.W, atol=1e-6)
        assert torch.allclose(path.cost[mine], alone.cost, atol=1e-10)


def test_it_goes_on_from_where_it_was():
    X, y = problem()
    seen = []
    path = solve(X, y, L2, 1e-10, report=lambda p: seen.append((p.W.clone(), p.b.clone())))
    again = solve(X, y, L2, 1e-10, start=seen[-1])
    assert torch.equal(
        solve(X, y, torch.tensor([0.03], dtype=torch.float64), 1e-9).l2, path.l2[1:2]
    )
    assert again.iterations.sum() <= len(L2) + 3 < path.iterations.sum()
    assert torch.allclose(again.W, path.W, atol=1e-4)


def test_too_few_iterations_leave_a_larger_gap_and_a_warning():
    X, y = problem()
    with pytest.warns(UserWarning, match="1 of 1 networks kept a larger gap than 1e-12"):
        path = solve(X, y, [1e-5], 1e-12, max_iterations=3)
    assert path.gap > 1e-12
    assert path.iterations <= 3


X, y = problem(n=30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"l2": [0.0]}, r"not 0: without a penalty .* certified"),
        ({"l2": [-1.0]}, "number > 0"),
        ({"l2": [float("nan")]}, "number > 0"),
        ({"l2": []}, "at least one"),
        ({"l2": [0.1, 0.1]}, "repeat"),
        ({"gap": 0.0}, "gap must be"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"y": torch.zeros(30, dtype=torch.int64)}, "one class only"),
        ({"y": y * 2}, "class 1 has no sample:"),
        ({"y": y.clone().fill_(-1)}, "no label"),
        ({"y": y.float()}, "int64"),
        ({"y": y[:-1]}, r"X must be \(n, d\)"),
        ({"X": X.clone().index_fill_(1, torch.tensor([2]), torch.nan)}, r"X\[0, 2\] = nan"),
        ({"X": X.long()}, "floating point"),
        ({"X": X.numpy()}, "must be tensors, not a ndarray and a Tensor"),
        (
            {"folds": ((y == 1) | (torch.arange(30) % 2 == 0)).long()},
            "class 1 has no sample with a weight above 0 for fold 1",
        ),
        ({"folds": torch.zeros_like(y)}, "folds must be 2"),
        ({"folds": y[:-1]}, "one for each of 30 samples"),
        ({"start": (torch.zeros(1, 2, 6), torch.zeros(1, 2))}, r"start must be W \(1, 3, 6\)"),
        ({"start": (torch.full((1, 3, 6), torch.nan), torch.zeros(1, 3))}, "start must be finite"),
    ],
)
def test_what_has_no_optimum_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        solve(**{"X": X, "y": y, "l2": [0.1], **arguments})


def solve_shared(rank, store):
    """Solve in one of two processes, and compare with what one process finds."""
    torch.set_num_threads(1)
    X, y, folds, expected = torch.load(store)
    method = f"file://{store}.group"
    distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    mine = slice(0, 70) if rank == 0 else slice(70, None)
    plain = solve(X[mine], y[mine], [0.003, 0.3], 1e-13, shared=True)
    folded = solve(X[mine], y[mine], [0.003, 0.3], 1e-13, folds=folds[mine], shared=True)
    for ours, (W, cost) in zip((plain, folded), expected, strict=True):
        assert (ours.W - W).norm() <= 1e-10 * W.norm(), (ours.W - W).norm()
        assert torch.allclose(ours.cost, cost, rtol=1e-12)
    distributed.destroy_process_group()


def test_two_processes_find_what_one_does(tmp_path):
    X, y = problem()
    folds = torch.arange(len(X)) % 2
    paths = [solve(X, y, [0.003, 0.3], 1e-13, **more) for more in ({}, {"folds": folds})]
    torch.save((X, y, folds, [(p.W, p.cost) for p in paths]), tmp_path / "problem")
    store = str(tmp_path / "problem")
    processes = [Forked(solve_shared, rank, store, folder=tmp_path) for rank in range(2)]
    for process in processes:
        assert process.wait() == 0, process.err

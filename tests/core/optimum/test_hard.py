"""Hard problems: a gap is finite, true and as small as asked; a cost never rises."""

import pytest
import torch

from onelayer.core.errors import InputError
from onelayer.core.optimum.certificate import certify
from onelayer.core.optimum.data import Samples
from onelayer.core.optimum.solve import solve

pytest.importorskip("scipy")

from benchmarks.hard_optima import judge, problem


@pytest.mark.parametrize("number", [0, 3, 5, 8, 11, 64, 83, 93, 122, 175, 528])
def test_scipy_finds_nothing_lower_than_the_gap_allows(number):
    assert judge(problem(number, largest=5000 if number == 528 else 600), steps=60).faults == []


def long_tailed(k=30, dtype=torch.float64):
    """Sizes of classes proportional to 1/rank."""
    g = torch.Generator().manual_seed(0)
    tail = torch.multinomial(1 / torch.arange(1.0, k + 1), 970, True, generator=g)
    y = torch.cat([torch.arange(k), tail])
    centres = torch.randn(k, 20, generator=g, dtype=torch.float64)
    return (torch.randn(len(y), 20, generator=g, dtype=torch.float64) + centres[y] / 4).to(dtype), y


def dominated(n=1000):
    """One of ten classes has 90 % of the samples, and none can be told from the others."""
    g = torch.Generator().manual_seed(1)
    shares = torch.full((10,), 0.1 / 9)
    shares[0] = 0.9
    others = torch.multinomial(shares, n - 10, True, generator=g)
    return torch.randn(n, 50, generator=g), torch.cat([torch.arange(10), others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("data", [long_tailed, dominated])
def test_rare_classes_are_solved(data, dtype):
    X, y = data()
    optima = solve(X.to(dtype), y, [1e-6, 1e-3, 1.0])
    assert (optima.gap <= 1e-6).all()
    assert (optima.iterations <= 300).all()


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_any_start_ends_at_the_minimum(scale):
    X, y = long_tailed(k=20)
    g = torch.Generator().manual_seed(2)
    start = [scale * torch.randn(1, 20, n, generator=g, dtype=torch.float64) for n in (20, 1)]
    optima = solve(X, y, [1.0], start=(start[0], start[1].squeeze(2)))
    assert optima.gap <= 1e-6
    assert float(optima.cost - solve(X, y, [1.0]).cost) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3, 7, 9])
def test_a_column_in_other_units_is_solved_in_float32(seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(120) % 3
    near = torch.randn(120, 3, generator=g) + torch.eye(3)[y]
    X = torch.cat([near, 1e5 * torch.randn(120, 1, generator=g)], 1)
    optima = solve(X, y, l2=[1e-4])
    assert (optima.gap <= 1e-6).all()


def test_no_iteration_raises_the_cost():
    X, y = long_tailed()
    l2 = [1e-6, 1e-3, 1.0]
    costs = []

    def watch(now):
        if now.round is None:
            Z = X @ now.W.mT + now.b.unsqueeze(1)
            loss = torch.logsumexp(Z, 2) - Z.gather(2, y.expand(3, -1).unsqueeze(2)).squeeze(2)
            penalty = torch.tensor(l2, dtype=torch.float64) * now.W.square().sum((1, 2))
            costs.append(loss.mean(1) + penalty)

    solve(X, y, l2, report=watch)
    costs = torch.stack(costs)
    assert len(costs) > 5
    assert (costs.diff(dim=0) <= 1e-12).all()


def test_the_cost_is_that_of_the_bias_that_is_returned():
    X, y = long_tailed()
    optima = solve(X, y, [1e-3], gap=1e-4)
    found = certify(Samples(X, y), optima.W, optima.b, optima.l2)
    assert float(found.cost) == pytest.approx(float(optima.cost), rel=1e-14)


def test_classes_that_cannot_be_balanced_have_a_bound():
    X, y = long_tailed(k=5)
    W = 1e6 * torch.randn(1, 5, 20, generator=torch.Generator().manual_seed(0)).double()
    found = certify(Samples(X, y), W, torch.zeros(1, 5).double(), torch.tensor([1e-3]).double())
    assert found.gap.isfinite()
    assert float(found.cost - found.gap) <= float(solve(X, y, [1e-3]).cost)


def test_a_direction_gives_a_smaller_bound_that_is_true():
    X, y = long_tailed(k=5)
    X = X * torch.logspace(-3, 3, 20, dtype=torch.float64)
    l2 = torch.tensor([1e-4], dtype=torch.float64)
    least = solve(X, y, [1e-4], 1e-10)
    W = 0.999 * least.W
    plain = certify(Samples(X, y), W, least.b, l2)
    direction = torch.cat([least.W - W, (least.b - plain.bias).unsqueeze(2)], 2)
    along = certify(Samples(X, y), W, plain.bias, l2, direction=direction)
    above = float(along.cost - least.cost)
    assert above <= float(along.gap) < float(plain.gap) / 10


def test_numbers_beyond_float64_are_an_error_that_names_the_member():
    X, y = long_tailed(k=3)
    with pytest.raises((InputError, RuntimeError), match=r"l2 = 0\.01"):
        solve(X * 1e200, y, [0.01])


def test_fewer_samples_than_features_of_low_rank_are_solved_in_float32():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(150, 8, generator=g) @ torch.randn(8, 1200, generator=g)
    X += 0.01 * torch.randn(150, 1200, generator=g)
    optima = solve(X, torch.arange(150) % 4, [1e-6, 1e-5])
    assert (optima.gap <= 1e-6).all()
    assert (optima.iterations <= 300).all()

"""Exact statistics, standardising, features as floats and as bytes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onelayer.core.errors import InputError
from onelayer.data import features as module
from onelayer.data.features import RawFeatures, Statistics, features, measure, standardise


def random_bytes(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, d), generator=generator, dtype=torch.uint8)


# ---- statistics


@pytest.mark.parametrize("n", [2, 9, 10, 11, 299, 1000])
def test_statistics_are_torchs(n):
    x = random_bytes(n, 17)
    scaled = x.double() / 255
    statistics = measure(x)
    assert statistics.mean.dtype == statistics.std.dtype == torch.float64
    torch.testing.assert_close(statistics.mean, scaled.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(statistics.std, scaled.std(0), rtol=1e-13, atol=0)


def test_statistics_do_not_depend_on_the_order():
    x = random_bytes(1000, 17)
    assert measure(x).equal(measure(x.flip(0)))
    assert not measure(x).equal(measure(x[1:]))


def test_a_pixel_that_hardly_varies_is_measured_exactly():
    x = torch.full((40_000, 1), 255, dtype=torch.uint8)
    x[0] = 254
    assert measure(x).std.item() == pytest.approx(1 / 200 / 255, rel=1e-15)
    assert measure(x[1:]).mean.item() == 1


@pytest.mark.parametrize("n", [1, 5])
def test_a_pixel_that_never_varies_has_std_1(n):
    x = torch.tensor([[7, 200]], dtype=torch.uint8).repeat(n, 1)
    statistics = measure(x)
    assert statistics.std.tolist() == [1, 1]
    assert standardise(x, statistics).abs().max() < 1e-6


def test_no_image_has_no_statistics():
    with pytest.raises(InputError, match="no image"):
        measure(torch.empty(0, 3, dtype=torch.uint8))


# ---- standardising


@pytest.mark.parametrize(
    ("dtype", "error"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 3e-3)],
)
def test_standardised_is_the_formula(dtype, error):
    x = random_bytes(53, 17)
    statistics = measure(x)
    X = standardise(x, statistics, dtype)
    expected = (x.double() / 255 - statistics.mean) / statistics.std
    assert X.dtype == dtype
    assert X.shape == x.shape
    assert (X.double() - expected).abs().max() < error


def test_half_precision_is_rounded_once():
    x = random_bytes(53, 17)
    X = standardise(x, measure(x))
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(standardise(x, measure(x), dtype), X.to(dtype))


def test_standardised_has_mean_0_and_std_1():
    x = random_bytes(500, 9)
    X = standardise(x, measure(x), torch.float64)
    assert X.mean(0).abs().max() < 1e-12
    assert (X.std(0) - 1).abs().max() < 1e-12


@given(rows=st.integers(1, 60), n=st.integers(1, 50), seed=st.integers(0, 9))
def test_the_chunks_leave_no_trace(rows, n, seed):
    x = random_bytes(n, 6, seed)
    statistics = measure(random_bytes(40, 6, seed + 100))
    whole = standardise(x, statistics)
    chunked = [standardise(part, statistics) for part in x.split(rows)]
    assert torch.equal(torch.cat(chunked), whole)


def test_the_size_of_a_chunk_changes_no_bit(monkeypatch):
    x = random_bytes(100, 12)
    statistics = measure(x)
    X = standardise(x, statistics)
    for rows in (1, 7, 100):
        monkeypatch.setattr(module, "_NUMBERS", rows * x.shape[1])
        assert measure(x).equal(statistics)
        assert torch.equal(standardise(x, statistics), X)


def test_features_kept_as_bytes_come_out_as_the_same_bits():
    x = random_bytes(23, 12)
    X, kept = standardise(x, measure(x)), RawFeatures(x, measure(x), torch.float32)
    rows = torch.tensor([3, 0, 22, 3])
    assert torch.equal(kept.index_select(0, rows), X[rows])
    assert torch.equal(torch.cat(list(kept.split(5))), X)
    assert (len(kept), kept.shape, kept.dtype) == (23, X.shape, X.dtype)


@pytest.mark.parametrize(("free", "kept"), [(8 * 23 * 12, False), (8 * 23 * 12 - 1, True)])
def test_features_are_kept_as_bytes_where_memory_is_short(monkeypatch, free, kept):
    monkeypatch.setattr(module, "room_on_gpu", lambda device: free)
    x = random_bytes(23, 12)
    assert isinstance(features(x, measure(x), torch.float32), RawFeatures) == kept


@pytest.mark.parametrize("shape", [(4, 5), (3,), (2, 3, 1)])
def test_other_features_are_refused(shape):
    statistics = Statistics(torch.zeros(3).double(), torch.ones(3).double())
    with pytest.raises(InputError, match="3 features"):
        standardise(torch.zeros(shape, dtype=torch.uint8), statistics)

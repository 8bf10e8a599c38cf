"""Batches by index: their order, exact resumption, ranks, and what is refused."""

import itertools
import math
from collections.abc import Iterable
from typing import TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler

from onelayer.core.errors import InputError
from onelayer.data.loader import ResidentLoader, check_batch, epoch_order

Batches = list[list[int]]
T = TypeVar("T")

sizes = st.integers(1, 40)
seeds = st.integers(0, 3)
epochs = st.integers(0, 3)


def numbered(n):
    """Samples that tell their row in every feature and in the label."""
    rows = torch.arange(n)
    return rows[:, None].expand(n, 3).float(), rows


def loader_of(n, batch_size, **options):
    return ResidentLoader(*numbered(n), batch_size, **options)


def rows_of(X, y):
    """Which samples a batch holds; features and labels must tell the same."""
    assert X.dtype == torch.float32
    assert X.tolist() == [[float(row)] * 3 for row in y.tolist()]
    return y.tolist()


def joined(lists: Iterable[list[T]]):
    return list(itertools.chain.from_iterable(lists))


def take(loader, count=None):
    return [rows_of(X, y) for X, y in itertools.islice(iter(loader), count)]


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return take(loader)


# ---- the order


@given(n=sizes, seed=seeds, epoch=epochs)
def test_an_epoch_visits_every_sample_once(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(n))
    assert torch.equal(order, epoch_order(n, seed, epoch))


def test_every_seed_and_epoch_has_its_own_order():
    pairs = itertools.product(range(12), range(12))
    assert len({tuple(epoch_order(30, *pair).tolist()) for pair in pairs}) == 144


@given(n=sizes, batch_size=sizes, seed=seeds, epoch=epochs)
def test_batches_cut_the_order(n, batch_size, seed, epoch):
    batch_size = min(batch_size, n)
    loader = loader_of(n, batch_size, seed=seed)
    batches = epoch_of(loader, epoch)
    assert len(batches) == len(loader) == math.ceil(n / batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert joined(batches) == epoch_order(n, seed, epoch).tolist()


def test_an_epoch_can_be_repeated():
    loader = loader_of(7, 2)
    first = epoch_of(loader, 3)
    assert epoch_of(loader, 4) != first
    assert epoch_of(loader, 3) == first == take(loader)


# ---- resuming


@given(n=sizes, batch_size=sizes, epoch=epochs, data=st.data())
def test_state_taken_at_any_batch_continues_there(n, batch_size, epoch, data):
    batch_size = min(batch_size, n)
    loader = loader_of(n, batch_size)
    whole = epoch_of(loader, epoch)
    position = data.draw(st.integers(0, len(loader)))

    killed = loader_of(n, batch_size)
    killed.sampler.set_epoch(epoch)
    begun = take(killed, position)
    state = killed.state_dict()
    assert (state["epoch"], state["position"]) == (epoch, position)

    resumed = loader_of(n, batch_size)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert begun + epoch_of(resumed, epoch) == whole
    assert take(resumed) == whole
    assert epoch_of(resumed, epoch + 1) == epoch_of(loader, epoch + 1)


@pytest.mark.parametrize("bytes_", [0, 50, 100, 10_000])
def test_batches_and_state_do_not_depend_on_how_many_are_taken_at_a_time(bytes_, monkeypatch):
    by_slices = [rows.tolist() for rows in epoch_order(20, 0, 2).split(3)]
    monkeypatch.setattr("onelayer.data.loader.AT_A_TIME", bytes_)  # a batch has 36 bytes
    loader = loader_of(20, 3)
    loader.set_epoch(2)
    for position, (X, y) in enumerate(loader):
        assert loader.state_dict() | {"epoch": 2, "position": position + 1} == loader.state_dict()
        assert rows_of(X, y) == by_slices[position]
        X.zero_()  # the user's own
        resumed = loader_of(20, 3)
        resumed.load_state_dict(loader.state_dict())
        assert take(resumed) == by_slices[position + 1 :]


def test_state_can_be_loaded_and_saved_again_and_again():
    whole = epoch_of(loader_of(20, 3), 2)
    seen: Batches = []
    state = {"epoch": 2, "position": 0}
    for count in (1, 0, 2, 1):
        loader = loader_of(20, 3)
        loader.load_state_dict(state)
        loader.sampler.set_epoch(2)
        seen += take(loader, count)
        state = loader.state_dict()
    loader.load_state_dict(state)
    assert seen + take(loader) == whole


def test_the_position_of_another_epoch_is_ignored():
    loader = loader_of(20, 3)
    loader.load_state_dict({"epoch": 1, "position": 4})
    assert epoch_of(loader, 2) == epoch_of(loader_of(20, 3), 2)
    assert epoch_of(loader, 1) == epoch_of(loader_of(20, 3), 1)


def test_iterators_made_before_the_state_is_loaded_obey_it():
    whole = epoch_of(loader_of(20, 3), 1)
    loader = loader_of(20, 3)
    _unused = iter(loader)  # Lightning makes two
    iterator = iter(loader)
    loader.load_state_dict({"epoch": 1, "position": 5})
    loader.sampler.set_epoch(1)
    assert [rows_of(X, y) for X, y in iterator] == whole[5:]


def test_an_iteration_given_up_leaves_no_trace():
    loader = loader_of(20, 3)
    whole = take(loader)
    take(loader, 2)
    assert take(loader) == whole


@pytest.mark.parametrize("position", [8, 80])
def test_a_position_beyond_the_epoch_is_refused(position):
    with pytest.raises(InputError, match=f"(?s)batch {position} .* 7 batches.*batch size"):
        loader_of(20, 3).load_state_dict({"epoch": 0, "position": position})


# ---- several processes


@given(n=st.integers(4, 40), batch_size=st.integers(4, 20), world=st.integers(1, 4), epoch=epochs)
def test_ranks_share_each_batch(n, batch_size, world, epoch):
    batch_size = min(batch_size, n)
    whole = epoch_of(loader_of(n, batch_size), epoch)
    ranks = [loader_of(n, batch_size, rank=r, world_size=world) for r in range(world)]
    shares = [epoch_of(loader, epoch) for loader in ranks]
    assert {len(share) for share in shares} == {len(whole)}
    for batch, *parts in zip(whole, *shares, strict=True):
        assert parts == [batch[r::world] for r in range(world)]

    for loader in ranks:
        loader.sampler.set_epoch(epoch)
        sizes_of_all = [loader.last_batch_size() for _ in loader]
        assert sizes_of_all == [len(batch) for batch in whole]


def test_ranks_are_those_of_torch_distributed_where_none_are_given(monkeypatch):
    loader = loader_of(10, 4)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    assert loader.processes == (1, 3)
    assert take(loader) == take(loader_of(10, 4, rank=1, world_size=3))
    assert loader_of(10, 4, rank=0, world_size=1).processes == (0, 1)
    with pytest.raises(InputError, match=r"batch_size .* from 3 to 10, not 2"):
        next(iter(loader_of(10, 2)))


def test_shuffling_can_be_turned_off():
    loader = loader_of(6, 2)
    assert not isinstance(loader.sampler, SequentialSampler)
    loader.shuffle = False
    for ordered in (loader, loader_of(6, 2, shuffle=False)):
        assert isinstance(ordered.sampler, SequentialSampler)
        assert epoch_of(ordered, 0) == epoch_of(ordered, 3) == [[0, 1], [2, 3], [4, 5]]


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size .* from 1 to 8, not 0"),
        ({"batch_size": -1}, "batch_size .* from 1 to 8, not -1"),
        ({"batch_size": 9}, "batch_size .* from 1 to 8, not 9"),
        ({"batch_size": 2, "rank": 0, "world_size": 3}, "batch_size .* from 3 to 8, not 2"),
        ({"rank": 2, "world_size": 2}, "rank .* from 0 to 1, not 2"),
        ({"rank": -1, "world_size": 1}, "rank .* from 0 to 0, not -1"),
        ({"rank": 0}, "give both or neither"),
        ({"world_size": 2}, "give both or neither"),
        ({"seed": -1}, "seed .* >= 0, not -1"),
        ({"classes": 7}, r"y\[7\] = 7 .* 0 to 6"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ResidentLoader(*numbered(8), **{"batch_size": 4, **options})


@pytest.mark.parametrize("row", [0, 4095, 4096, 4999])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_feature_that_is_no_number_is_named(row, value, dtype):
    X, y = torch.ones(5000, 3, dtype=dtype), torch.zeros(5000, dtype=torch.int64)
    X[row, 2] = value
    X[-1, 2] = value
    with pytest.raises(InputError, match=rf"X\[{row}, 2\] = {value}"):
        check_batch(X, y, 10)


@pytest.mark.parametrize("label", [-1, -100, 10, 2**40])
def test_a_label_that_is_none_is_named(label):
    X, y = numbered(9)
    y[4] = label
    with pytest.raises(InputError, match=rf"y\[4\] = {label} .* 0 to 9"):
        check_batch(X, y, 10)


def test_without_classes_only_negative_labels_are_refused():
    X, y = numbered(9)
    check_batch(X, y + 1000)
    with pytest.raises(InputError, match=r"y\[0\] = -1"):
        check_batch(X, y - 1)


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (torch.ones(3, 2), torch.zeros(4, dtype=torch.int64)),
        (torch.ones(3), torch.zeros(3, dtype=torch.int64)),
        (torch.ones(3, 2, 1), torch.zeros(3, dtype=torch.int64)),
        (torch.ones(3, 2), torch.zeros(3, 1, dtype=torch.int64)),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64)),
        (torch.ones(3, 0), torch.zeros(3, dtype=torch.int64)),
        (torch.ones(3, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int32)),
        (torch.ones(3, 2), torch.zeros(3)),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_named(X, y):
    with pytest.raises(InputError) as caught:
        check_batch(X, y, 10)
    for part in (X.dtype, tuple(X.shape), y.dtype, tuple(y.shape)):
        assert str(part) in str(caught.value)


def test_large_finite_features_are_not_refused():
    X, y = torch.full((50, 4), 60000.0, dtype=torch.float16), torch.zeros(50, dtype=torch.int64)
    check_batch(X, y, 10)  # though their sum is infinite

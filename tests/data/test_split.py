"""Splits as ranges of rows, against lists of them."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from onelayer.data.split import in_batches, split_rows, take

ranges = st.builds(lambda start, n: range(start, start + n), st.integers(0, 50), st.integers(0, 9))
pieces = st.lists(ranges, max_size=4)


@given(pieces, st.integers(0, 40), st.integers(0, 40))
def test_rows_are_taken_as_from_a_list(pieces, start, stop):
    rows = list(chain.from_iterable(pieces))
    assert list(chain.from_iterable(take(pieces, start, stop))) == rows[start:stop]


@given(pieces, st.integers(0, 9), pieces, st.none() | st.integers(1, 9))
def test_no_row_trains_and_validates(train, val_size, test, limit):
    rows = list(chain.from_iterable(train))
    splits = split_rows(train, min(val_size, len(rows)), test, limit)
    border = max(len(rows) - val_size, 0)
    found = {name: list(chain.from_iterable(parts)) for name, parts in splits.items()}
    assert found["train"] == rows[:border][:limit]
    assert found["val"] == rows[border:][:limit]
    assert found["test"] == list(chain.from_iterable(test))[:limit]
    assert split_rows(train, test, [])["val"] == [piece for piece in test if piece]


@given(ranges.filter(len), st.integers(1, 9))
def test_batches_hold_the_rows_in_order(rows, size):
    parts = list(in_batches(rows, size))
    assert [number * size + i for number, part in parts for i in part] == list(rows)
    assert all(0 <= part.start < part.stop <= size for _, part in parts)

"""Random streams: pinned bits, independence, prefixes."""

import numpy as np
import pytest

from onelayer.core.errors import InputError
from onelayer.data.random import permutation, words


def test_the_bits_never_change():
    # From numpy 2.4.6 and 1.26 alike: a checkpoint resumes after an upgrade, too.
    assert words(3, 7, 1, 2).tolist() == WORDS
    assert permutation(10, 0, 0).tolist() == ORDER


WORDS = [8834056210639959753, 2604645062250368442, 17211240252596255322]
ORDER = [6, 3, 8, 1, 4, 5, 9, 2, 7, 0]


def test_fewer_words_are_the_beginning_of_more():
    assert words(5, 3, 4).tolist() == words(50, 3, 4)[:5].tolist()


def test_names_that_look_alike_are_other_streams():
    names = [(0,), (0, 0), (0, 0, 0), (1,), (1, 0), (0, 1), (2**32,), (0, 2**32), (1 + 2**32,)]
    names += [(1, 2), (2, 1), (3, 0), (12,)]
    first = [tuple(words(2, *name).tolist()) for name in names]
    assert len(set(first)) == len(names)


def test_neighbouring_streams_are_uncorrelated():
    draws = np.array([words(2000, seed, epoch) for seed in range(4) for epoch in range(4)])
    correlation = np.corrcoef(draws / 2.0**64) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.1  # 4.5 standard errors


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257])
def test_a_permutation_holds_each_number_once(n):
    order = permutation(n, 5, 6)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_permutations_are_uniform():
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(2400):
        order = tuple(permutation(4, 11, epoch).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    chi2 = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi2 < 60  # 23 degrees of freedom: p = 4e-5


@pytest.mark.parametrize("name", [(-1,), (0, -1)])
def test_a_negative_name_is_refused(name):
    with pytest.raises(InputError, match="start at 0"):
        words(1, *name)

"""Random numbers as pure functions of a key, the same bits on every platform and version.

Only ``random_raw`` of PCG64 and Philox and ``SeedSequence`` are used, whose streams numpy promises
never to change (NEP 19), and exact integer arithmetic; ``torch.Generator`` keeps 32 bits of its
seed, so many streams would meet, and the order that ``torch.randperm`` makes is promised by nobody.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onelayer.core.errors import InputError


def words(count: int, seed: int, *key: int) -> NDArray[np.uint64]:
    """Draw the first ``count`` random 64-bit words of the stream named by ``(seed, *key)``.

    Raises:
        InputError: a negative ``seed`` or key.
    """
    if seed < 0 or min(key, default=0) < 0:
        raise InputError(f"seed = {seed} with {key}: seeds, epochs and streams start at 0.")
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return np.asarray(np.random.PCG64(sequence).random_raw(count), dtype=np.uint64)


def philox(count: int, seed: int, stream: int, *counter: int) -> NDArray[np.uint64]:
    """Draw the first ``count`` random 64-bit words of Philox4x64 at ``(seed, stream, *counter)``.

    Word ``i`` is a function of the key and of ``i`` alone (a counter-based generator: Salmon et
    al., *Parallel random numbers: as easy as 1, 2, 3*, 2011), and costs a few nanoseconds.

    Args:
        count: of words.
        seed: 0 to 2^64 - 1.
        stream: what the words are for: no two uses share one.
        counter: at most three numbers, from 0 to 2^64 - 1.
    """
    key = np.array([seed, stream], dtype=np.uint64)
    start = np.array([0, *counter, *[0] * (3 - len(counter))], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key, counter=start).random_raw(count), dtype=np.uint64)


def permutation(n: int, seed: int, *key: int) -> NDArray[np.int64]:
    """Draw a random order of ``0 … n-1`` from the stream ``(seed, *key)``, int64 (n,)."""
    low = np.uint64((1 << n.bit_length()) - 1)
    # Sorting numbers whose high bits are random and whose low bits are the index: no two are equal,
    # so every sorting algorithm gives the same order.
    tickets = (words(n, seed, *key) & ~low) | np.arange(n, dtype=np.uint64)
    tickets.sort()
    return (tickets & low).astype(np.int64)

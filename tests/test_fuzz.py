"""Random shapes, values and bytes: populations, schedules, and damaged files."""

import io
import math
import pickle
import pickletools
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onelayer.core import formulas
from onelayer.core.errors import InputError
from onelayer.training.checkpoint import read_checkpoint
from onelayer.training.schedule import TriangularLR
from tests.support.cases import population

fuzz = settings(max_examples=100, deadline=None, derandomize=True)
sizes = {"m": st.integers(1, 4), "n": st.integers(1, 12), "d": st.integers(1, 20)}
networks = {"hidden": st.integers(0, 6), "k": st.integers(2, 8), "seed": st.integers(0, 2**32)}


# ---- populations


@fuzz
@given(**sizes, **networks, data=st.data(), steps=st.integers(1, 6))
def test_members_descend_as_they_would_alone(m, n, d, hidden, k, seed, data, steps):
    X, _, together = population(m, hidden, d, k, n, seed=seed)
    together, g = [p.detach() for p in together], torch.Generator().manual_seed(seed)
    alone = [[p[i : i + 1].clone() for p in together] for i in range(m)]
    each = st.lists(st.floats(0, 1), min_size=m, max_size=m)
    l2, lr = torch.tensor(data.draw(each)).double(), torch.tensor(data.draw(each)).double()
    for _ in range(steps):
        y = torch.randint(k, (n,), generator=g)
        formulas.descend_(X, y, together, l2, lr)
        for i, parameters in enumerate(alone):
            formulas.descend_(X, y, parameters, float(l2[i]), float(lr[i]))
    for i, parameters in enumerate(alone):
        for ours, single in zip(together, parameters, strict=True):
            size = float(single.abs().max())
            torch.testing.assert_close(ours[i : i + 1], single, rtol=1e-10, atol=1e-10 * size)


# ---- schedules


@fuzz
@given(
    mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
    base_lr=st.floats(0, 1),
    width=st.floats(0, 1),
    step_size=st.integers(1, 5000),
    gamma=st.floats(0.5, 1),
    steps=st.lists(st.integers(0, 200_000), min_size=1, max_size=20),
)
def test_rates_are_cyclic_lrs_wherever_it_is_put(mode, base_lr, width, step_size, gamma, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base_lr)
    theirs = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr, base_lr + width, step_size, mode=mode, gamma=gamma, cycle_momentum=False
    )
    ours = TriangularLR(base_lr, base_lr + width, step_size, mode=mode, gamma=gamma)
    for step in steps:
        if step >= 2000 * step_size:
            continue  # CyclicLR's triangular2 overflows after 1,024 cycles
        theirs.last_epoch = step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that get_lr is not for users
            (expected,) = theirs.get_lr()
        # CyclicLR subtracts the cycles done, of size step / 2 step_size, and so loses digits
        assert ours.rate(step) == pytest.approx(expected, abs=1e-15 * (step / step_size + 10))
        assert base_lr <= ours.rate(step) <= math.nextafter(base_lr + width, math.inf)


# ---- files

places = st.integers(0, 400) | st.integers(-400, -1) | st.integers(0, 10**6)
changes = st.lists(
    st.tuples(places, st.binary(max_size=6), st.integers(0, 6)), min_size=1, max_size=5
)


def changed(content: bytes, changes) -> bytes:
    """Bytes replaced, cut out and put in."""
    result = bytearray(content)
    for place, new, length in changes:
        at = place % max(len(result), 1)
        result[at : at + length] = new
    return bytes(result)


def flipped(content: bytes, bit: int) -> bytes:
    result = bytearray(content)
    result[bit // 8 % len(result)] ^= 1 << bit % 8
    return bytes(result)


def inner(value: object) -> bytes:
    """The opcodes that put a value on the stack and touch nothing else."""
    return pickletools.optimize(pickle.dumps(value, 2))[2:-1]


def opcodes(marker: Path) -> st.SearchStrategy[list[bytes]]:
    """Pieces of pickles that would, in the right order, make a file."""
    code = f"open({str(marker)!r}, 'w').close()"
    calls = [inner(x) for x in (code, str(marker), (code,), (str(marker),), {}, 1, None)]
    names = [b"posix\nsystem\n", b"builtins\nexec\n", b"builtins\neval\n", b"os\nmkdir\n"]
    names += [b"numpy\nndarray\n", b"torch._utils\n_rebuild_tensor_v2\n", b"numpy\ndtype\n"]
    whole = [b"c" + name + call + b"R" for name in names for call in calls[2:4]]
    verbs = [bytes([op]) for op in b"R\x81b(t)}]eus0.2Qo\x85\x86\x93\x92"]
    return st.lists(
        st.sampled_from([*(b"c" + name for name in names), *calls, *whole, *verbs]),
        min_size=1,
        max_size=6,
    )


def with_opcodes(content: bytes, pieces: list[bytes], place: int) -> bytes:
    """Put between two opcodes, so that what comes before and after is still read."""
    starts = [position for _, _, position in pickletools.genops(content)]
    at = starts[place % len(starts)]
    return content[:at] + b"".join(pieces) + content[at:]


MARKER = Path("executed-by-a-fuzzed-pickle").resolve()


def make_checkpoint() -> bytes:
    target = io.BytesIO()
    content = {
        "epoch": 0,
        "global_step": 20,
        "pytorch-lightning_version": "2.5.2",
        "state_dict": {"W": torch.ones(1, 3, 4), "b": torch.ones(1, 3), "n": torch.arange(3)},
        "hyper_parameters": {"hidden": 0, "l2": [0.0, 0.1], "init_std": None},
        "callbacks": {"Curves": {"rows": [(0, "train", 0, 0.0, 0, 1e-5, 2.3, 2.3, 0.1)]}},
    }
    torch.save(content, target)
    return target.getvalue()


CHECKPOINT = make_checkpoint()


def pickle_of(checkpoint: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl")))


def with_pickle(checkpoint: bytes, replacement: bytes) -> bytes:
    """The same archive around another pickle, its checksums right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, replacement if name.endswith("/data.pkl") else old.read(name))
    return target.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints") / "a.ckpt"


def content_or_input_error(path: Path, content: bytes) -> dict | None:
    """Neither another exception nor code that runs."""
    path.write_bytes(content)
    try:
        found = read_checkpoint(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert len(str(error).splitlines()) <= 5  # noqa: PT017
        found = None
    else:
        assert "state_dict" in found
    assert not MARKER.exists()
    return found


def test_the_checkpoint_is_good_before(path):
    for content in (CHECKPOINT, with_pickle(CHECKPOINT, pickle_of(CHECKPOINT))):
        assert content_or_input_error(path, content)["state_dict"]["n"].tolist() == [0, 1, 2]


@fuzz
@given(content=st.binary(max_size=300))
def test_random_bytes_are_no_checkpoint(path, content):
    assert content_or_input_error(path, content) is None
    assert content_or_input_error(path, b"PK\x03\x04" + content) is None


@fuzz
@given(changes=changes)
def test_a_checkpoint_with_changed_bytes_is_whole_or_refused(path, changes):
    content_or_input_error(path, changed(CHECKPOINT, changes))


@fuzz
@given(bit=st.integers(0, 8 * len(CHECKPOINT) - 1))
def test_a_checkpoint_with_a_flipped_bit_is_refused_or_the_same(path, bit):
    found = content_or_input_error(path, flipped(CHECKPOINT, bit))
    if found is not None:  # the bit was in what nobody reads
        whole = content_or_input_error(path, CHECKPOINT)
        for name, value in whole["state_dict"].items():
            assert torch.equal(found["state_dict"][name], value)


@fuzz
@given(end=st.integers(0, len(CHECKPOINT) - 1))
def test_a_checkpoint_cut_short_is_refused(path, end):
    assert content_or_input_error(path, CHECKPOINT[:end]) is None


@fuzz
@given(changes=changes)
def test_a_checkpoint_whose_pickle_is_changed_is_plain_values_or_refused(path, changes):
    content_or_input_error(path, with_pickle(CHECKPOINT, changed(pickle_of(CHECKPOINT), changes)))


@fuzz
@given(pieces=opcodes(MARKER), place=st.integers(0, 10**4))
def test_a_checkpoint_with_opcodes_put_in_runs_nothing(path, pieces, place):
    hostile = with_opcodes(pickle_of(CHECKPOINT), pieces, place)
    content_or_input_error(path, with_pickle(CHECKPOINT, hostile))


def test_the_opcodes_would_run(tmp_path):
    """What is refused above does act where it is not."""
    marker = tmp_path / "made"
    code = inner((f"open({str(marker)!r}, 'w').close()",))
    pickle.loads(with_opcodes(inner([1, 2]) + b".", [b"cbuiltins\nexec\n", code, b"R", b"0"], 1))
    assert marker.exists()

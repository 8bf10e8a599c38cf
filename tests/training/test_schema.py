"""Doctored checkpoints: refused in a few lines, or nothing comes of it."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onelayer.core.errors import InputError
from onelayer.data.resident import ResidentDataModule
from onelayer.data.table import Table
from onelayer.training.checkpoint import Checkpoints, read_checkpoint
from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer, load_network
from onelayer.training.results import Results
from onelayer.training.schedule import TriangularLR
from onelayer.training.snapshots import Snapshots
from tests.support.small import CLASSES, PIXELS, SAFELY, images, trainer

STEPS = 12


def table(n, seed):
    """Images of 12 pixels."""
    part = images(n, seed)
    return Table(part.x, part.y.numpy(), classes=("dark", "grey", "light"), shape=(PIXELS,))


def data():
    readers = {"train": lambda: table(60, 1), "test": lambda: table(30, 3)}
    return ResidentDataModule(readers, "small", batch_size=8, val_size=20)


def network():
    return OneLayer(hidden=2, l2=[0.0, 0.01], inputs=PIXELS, classes=CLASSES)


def train(folder, max_steps, path=None):
    """A training from the start, or from the checkpoint; the module."""
    model = network()
    callbacks = [TriangularLR(step_size=3), Curves(), Results(), Snapshots()]
    callbacks.append(Checkpoints(dirpath=folder))
    run = trainer(folder, max_steps, callbacks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(model, datamodule=data(), ckpt_path=path, **SAFELY)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint in mid-epoch."""
    folder = tmp_path_factory.mktemp("saved")
    train(folder, STEPS - 2)
    return read_checkpoint(folder / "last.ckpt")


@pytest.fixture(scope="module")
def expected(saved, tmp_path_factory):
    """The weights that it leads to."""
    folder = tmp_path_factory.mktemp("expected")
    torch.save(saved, folder / "a.ckpt")
    return train(folder / "run", STEPS, folder / "a.ckpt").state_dict()


def paths_of(value, path=()):
    """Every place of nested dicts and lists."""
    if path:
        yield path
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_of(inner, (*path, key))


JUNK = [
    None,
    "x",
    "",
    -1,
    0,
    1,
    7,
    10**12,
    2**70,
    1.5,
    -0.5,
    float("nan"),
    float("inf"),
    True,
    False,
]
JUNK += [[], {}, [1], [None], {"x": 1}, b"x", (1, 2)]


def other_tensors(tensor):
    """The tensor with other numbers, dtypes, shapes, and one that pretends to be huge."""
    one = tensor.clone()
    one.view(-1)[-1] = float("nan")
    return [
        -tensor, tensor * 0, tensor.long(), tensor.half(), tensor[:-1], tensor.unsqueeze(0), one,
        tensor * float("nan"), tensor * float("inf"), torch.zeros(1).expand(10**12),
        tensor.view(-1)[:1].as_strided(tensor.shape, [0] * tensor.ndim), tensor.to_sparse(),
        tensor.double() * 1e300, torch.tensor(1.0),
    ]  # fmt: skip


def doctored(content, path, choice):
    """The content with one place changed or taken out."""
    content = copy.deepcopy(content)
    *way, last = path
    holder = content
    for i, key in enumerate(way):
        if isinstance(holder[key], tuple):  # which cannot be changed in place
            holder[key] = list(holder[key])
        holder = holder[key]
        assert i < len(path)
    old = holder[last]
    options = [*JUNK, *(other_tensors(old) if isinstance(old, torch.Tensor) else [])]
    if isinstance(old, int | float) and not isinstance(old, bool):
        options += [old + 1, old - 1, -old, old * 10**6]
    if isinstance(old, list | dict):
        options += [old * 2 if isinstance(old, list) else {**old, "more": 1}]
    choice %= len(options) + 1
    if choice == len(options):
        del holder[last]
    else:
        holder[last] = options[choice]
    return content


def refused_or(act):
    """What it returns; None where it refuses in a few lines."""
    try:
        return act()
    except InputError as error:
        assert len(str(error).splitlines()) <= 5  # noqa: PT017
        return None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(draw=st.data())
def test_a_doctored_checkpoint_is_refused_or_changes_nothing(
    draw, saved, expected, tmp_path_factory
):
    place = draw.draw(st.sampled_from(sorted(paths_of(saved), key=str)))
    content = doctored(saved, place, draw.draw(st.integers(0, 40)))
    folder = tmp_path_factory.mktemp("doctored")
    path = folder / "a.ckpt"
    torch.save(content, path)
    model = refused_or(lambda: load_network(path))
    if model is not None:
        X, _ = data().tensors("val")
        P = refused_or(lambda: model.predict_step(X, 0))
        assert P is None or P.isfinite().all()
    resumed = refused_or(lambda: train(folder / "run", STEPS, path))
    if resumed is not None and place[0] != "state_dict":
        for name, value in resumed.state_dict().items():
            assert torch.equal(value, expected[name]), place

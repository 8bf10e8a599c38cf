"""What every test may use: the real CIFAR-10 where it is there, and markers that skip."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # figures go to files, whatever display there is

from onelayer._compat import ensure_torchvision_operators

ensure_torchvision_operators()  # before anything imports lightning

import torch
from matplotlib.figure import Figure
from PIL import Image

from onelayer.core import update
from tests.support import recording

REPOSITORY = Path(__file__).resolve().parents[1]
collect_ignore = ["lightning_suite.py"]  # a plugin of its own, which changes OneLayer's place


def _find_cifar10() -> Path | None:
    """The folder that holds CIFAR-10: ONELAYER_DATA's, else shared/ beside the repository."""
    named = os.environ.get("ONELAYER_DATA")
    roots = [Path(named)] if named else [REPOSITORY.parent / "shared"]
    return next((root.resolve() for root in roots if (root / "cifar-10-batches-py").is_dir()), None)


CIFAR10_ROOT = _find_cifar10()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real CIFAR-10; a test that uses it is marked realdata by itself."""
    if CIFAR10_ROOT is None:
        pytest.skip("no real CIFAR-10: set ONELAYER_DATA to the folder with cifar-10-batches-py")
    return CIFAR10_ROOT


@pytest.fixture(scope="session", autouse=True)
def draw() -> Iterator[list[bool]]:
    """Write blank figures unless the last item is true: drawing takes most of a short run's time.

    Figures are made as always; only the work of matplotlib's ``savefig`` is left out.
    """
    state, savefig = [False], Figure.savefig

    def save(figure: Figure, target: object, **options: object) -> None:
        if state[-1]:
            savefig(figure, target, **options)
        else:
            width, height = figure.get_size_inches() * 100
            Image.new("1", (int(width), int(height))).save(target, "png")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield state


@pytest.fixture
def drawn(draw: list[bool]) -> Iterator[None]:
    """Draw the figures of a test."""
    draw.append(True)
    yield
    draw.pop()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Graphs are recorded on the CPU (tests.support.recording); the list of what was recorded."""
    done = []

    def record(work: Callable[[], None]) -> Callable[[], None]:
        done.append(work)
        return recording.record(work)

    monkeypatch.setattr(update, "record", record)
    return done


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="needs a CUDA device: torch.cuda.is_available() is False")
    has_gpu = torch.cuda.is_available()
    for item in items:
        if "data_root" in getattr(item, "fixturenames", ()):
            item.add_marker("realdata")
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(no_gpu)

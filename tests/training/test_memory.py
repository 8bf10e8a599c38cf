"""Networks that do not fit the memory are refused before any of it is taken."""

from types import SimpleNamespace

import pytest

from onelayer.core.errors import InputError
from onelayer.data import features
from onelayer.study.plan import Final, Plan
from onelayer.study.search import Search
from onelayer.training import module
from onelayer.training.module import OneLayer
from tests.support.small import CLASSES, PIXELS, fit


@pytest.fixture
def free(monkeypatch):
    """Sets the memory that is free."""

    def set_free(size):
        answer = SimpleNamespace(available=int(size))
        monkeypatch.setattr(features.psutil, "virtual_memory", lambda: answer)

    return set_free


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [({"hidden": 10**9}, "49,328.0 GB"), ({"hidden": 50, "seeds": [*range(3000)]}, "7.4 GB")],
)
def test_networks_too_big_to_be_made_are_refused_before_they_are(
    free, monkeypatch, arguments, needed
):
    free(6e9)
    monkeypatch.setattr(module, "initial_parameters", lambda *_: pytest.fail("too late"))
    with pytest.raises(InputError, match="fewer hidden units") as error:
        OneLayer(**arguments)
    assert needed in str(error.value)
    assert "6.0 GB are free" in str(error.value)


def test_networks_that_can_be_made_and_not_trained_are_refused_before_the_first_update(
    free, tmp_path
):
    model = OneLayer(50, seeds=[0, 1], inputs=PIXELS, classes=CLASSES)
    free(2 * 2 * 60 * 50 * 4 - 1)  # of both networks 60 x 50 hidden units, twice
    with pytest.raises(InputError, match="to be trained these 2 networks need"):
        fit(tmp_path, model)
    free(2 * 2 * 60 * 50 * 4)
    fit(tmp_path, model, max_steps=2)


def test_a_search_of_too_many_at_once_is_refused_before_it_starts(free, tmp_path):
    free(1e9)
    data, plan = (
        {"source": "synthetic", "limit": 200},
        Plan(number=1000, seeds=[0, 1], members=3000),
    )
    search = Search(plan, {"hidden": 50}, data, {}, Final(batch_size=10), tmp_path / "out")
    with pytest.raises(InputError, match="2000 networks need"):
        search.run()
    assert list(tmp_path.iterdir()) == []

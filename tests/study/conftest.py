"""A tiny search that nothing disturbs, and empty databases for trial databases."""

import pytest

from onelayer.__main__ import main
from tests.study.tiny import AXES, TINY
from tests.support.postgres import Server


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(["search", *TINY, "--output", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="session")
def over_settings(tmp_path_factory):
    """The same with other arguments beside λ: the first setting is that of the tiny search."""
    folder = tmp_path_factory.mktemp("settings")
    assert main(["search", *TINY, *AXES, "--output", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="session")
def postgres():
    reason = Server.missing()
    if reason:
        pytest.skip(reason)
    with Server() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def storage(request, tmp_path):
    """URL of an empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'search.db'}"
    return request.getfixturevalue("postgres").create_database()

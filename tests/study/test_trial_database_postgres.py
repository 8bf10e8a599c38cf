"""Searches that share a trial database on a real PostgreSQL server, started by the test itself."""

import random
from contextlib import closing

import pytest
from optuna.trial import TrialState

from onelayer.core.errors import InputError
from tests.study.tiny import TINY, read_database, read_trials
from tests.support.claiming import figures_of, make_plan, open_database, share
from tests.support.killing import run_killed
from tests.support.postgres import Server
from tests.support.processes import Forked

pytestmark = pytest.mark.postgres


def test_two_searches_share_the_trials_though_one_is_killed_again_and_again(
    postgres, undisturbed, tmp_path
):
    """Each has a folder of its own, as on another machine."""
    storage = postgres.create_database()
    command = ["search", *TINY, "--output", "out", "--storage", storage]
    rng = random.Random(2)
    kills = {"one": [rng.uniform(0.1, 1.5) for _ in range(4)], "two": []}
    for name in kills:
        (tmp_path / name).mkdir()
    runs = [Forked(run_killed, command, kills[n], folder=tmp_path / n) for n in kills]
    assert [run.wait(300) for run in runs] == [0, 0], [run.err for run in runs]
    one, two = (int(run.out.split()[-1]) for run in runs)
    assert one >= 1
    assert two == 0
    assert read_database(storage) == read_database(f"sqlite:///{undisturbed / 'search.db'}")
    assert [t.state for t in read_trials(storage)] == [TrialState.COMPLETE] * 16
    tables = [(tmp_path / name / "out" / "search.csv").read_text() for name in kills]
    assert tables == [(undisturbed / "search.csv").read_text()] * 2


def test_a_database_without_an_encoding_serves_too(postgres):
    storage = postgres.create_database("ENCODING 'SQL_ASCII' TEMPLATE template0")
    assert share(storage, groups=1) == [0]
    with closing(open_database(storage)) as database:
        assert [trial.params["l2"] for trial in database.trials().values()] == [1e-5, 1e-5]


def test_a_server_that_goes_away_ends_in_a_clear_error(caplog):
    if Server.missing():
        pytest.skip(Server.missing())
    plan, go_on = make_plan(1), "the same command goes on from there"
    with Server() as server:
        with closing(open_database(server.create_database())) as database:
            with database.claim(plan) as group:
                server.stop()
                with pytest.raises(InputError, match=go_on):
                    database.record(group, figures_of(group))
            with pytest.raises(InputError, match=go_on):
                database.unfinished(plan)
        assert caplog.records == []  # nothing of SQLAlchemy's own

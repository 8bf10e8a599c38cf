"""The database alone: whatever processes do or suffer, each network is entered once and kept."""

import json
import math
import os
import signal
import threading
import time
from contextlib import closing
from dataclasses import replace

import optuna
import pytest
from sqlalchemy.engine import URL

from onelayer.core.errors import InputError
from onelayer.study.trial_database import TrialDatabase, is_finite
from tests.study.tiny import read_trials
from tests.support.claiming import (
    HIGH,
    LOW,
    SETTINGS,
    attack,
    die_recording,
    figures_of,
    hold,
    make_plan,
    open_database,
    share,
)
from tests.support.processes import CONTEXT, Forked


@pytest.fixture
def database(storage):
    with closing(open_database(storage)) as database:
        yield database


def finish(database, plan):
    """Claim and record what is left of a stage, alone."""
    while database.unfinished(plan):
        with database.claim(plan) as group:
            database.record(group, figures_of(group))


def is_free(database, plan):
    with database.claim(plan) as group:
        return group is not None


def in_threads(number, work):
    """Run ``work(i)`` in threads that all begin at the same moment; the results."""
    barrier, results = threading.Barrier(number), [None] * number

    def run(i):
        barrier.wait()
        results[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def check_all_entered_once(storage, groups=6):
    found = {(t.user_attrs["index"], t.user_attrs["seed"]): t.value for t in read_trials(storage)}
    plan = make_plan(groups)
    assert len(read_trials(storage)) == len(plan)
    assert [found[p.index, p.seed] for p in plan] == [f["val_accuracy"] for f in figures_of(plan)]


def test_a_group_is_claimed_once_and_again_after_an_exception(database):
    plan = make_plan(2)
    with (
        database.claim(plan) as first,
        database.claim(plan) as second,
        database.claim(plan) as third,
    ):
        assert (first, second, third) == (plan[:2], plan[2:], None)
    with pytest.raises(KeyboardInterrupt), database.claim(plan):
        raise KeyboardInterrupt
    assert is_free(database, plan)
    assert database.study.trials == []


def test_stages_do_not_mix(database):
    finish(database, make_plan(2, stage=2))
    assert len(database.unfinished(make_plan(2, stage=1))) == 2
    assert database.unfinished(make_plan(2, stage=2)) == []


def test_studies_of_one_database_do_not_wait_for_each_other(storage, database):
    with closing(TrialDatabase(storage, "other", {})) as other, database.claim(make_plan(1)):
        finish(other, make_plan(1))
    assert database.trials() == {}


def test_threads_that_open_one_new_database_share_its_groups(storage):
    trained = in_threads(4, lambda _: share(storage))
    assert sorted(group for groups in trained for group in groups) == list(range(6))
    check_all_entered_once(storage)


def test_processes_that_are_killed_record_no_group_twice_and_lose_none(storage, tmp_path):
    with Forked(attack, storage, folder=tmp_path) as process:
        assert process.wait() == 0, process.err
    seen = json.loads(process.out)
    assert set(seen["codes"]) == {0}
    ends = [group for what, group in seen["events"] if what == "end"]
    begins = [group for what, group in seen["events"] if what == "begin"]
    assert len(ends) == len(set(ends))
    assert seen["hits"] >= 5
    assert 12 <= len(begins) <= 12 + seen["hits"]  # begun again only after a kill
    check_all_entered_once(storage, groups=12)


def test_a_group_is_free_when_its_process_was_killed_and_not_before(storage, tmp_path):
    plan = make_plan(1)
    held = CONTEXT.Event()
    with (
        Forked(hold, storage, held, folder=tmp_path) as process,
        closing(open_database(storage)) as database,
    ):
        assert held.wait(60)
        assert not is_free(database, plan)
        os.kill(process.pid, signal.SIGKILL)  # and nobody waits for it
        end = time.monotonic() + 20
        while not is_free(database, plan):
            assert time.monotonic() < end


def test_what_was_entered_before_a_kill_stays_and_the_rest_is_trained_again(storage, tmp_path):
    plan = make_plan(1)
    with Forked(die_recording, storage, folder=tmp_path) as process:
        assert process.wait() == -signal.SIGKILL
    with closing(open_database(storage)) as database:
        assert database.unfinished(plan) == [plan]  # all of it: a group is trained as one
        with database.claim(plan) as group:
            database.record(group, [{"val_cost": 9.0, "val_accuracy": 0.9} for _ in plan])
        assert database.unfinished(plan) == []
        values = [database.trials()[planned.key].value for planned in plan]
        assert values == [figures_of(plan)[0]["val_accuracy"], 0.9]


def test_a_group_finished_between_the_question_and_the_claim_is_not_trained_again(
    database, monkeypatch
):
    plan, real = make_plan(1), database.unfinished
    finish(database, plan)
    answers = iter([[plan]])  # as it was a moment ago
    monkeypatch.setattr(database, "unfinished", lambda p: next(answers, None) or real(p))
    assert not is_free(database, plan)


def test_figures_that_are_no_numbers_become_null_and_rank_last(database):
    plan = make_plan(2)
    wild = [{"val_cost": math.nan, "val_accuracy": 0.1}, {"val_cost": 1, "val_accuracy": math.inf}]
    database.record(plan, [*wild, *figures_of(plan[2:])])
    first, second = (database.trials()[planned.key] for planned in plan[:2])
    assert (first.value, first.user_attrs["val_cost"]) == (0.0, None)
    assert (second.value, second.user_attrs["val_accuracy"]) == (0.0, None)
    assert not is_finite({"val_cost": first.user_attrs["val_cost"]})
    assert not is_finite(wild[1])
    assert is_finite(figures_of(plan)[0])
    assert database.study.best_trial.params["l2"] == plan[2].l2


def test_other_settings_are_refused_with_both_values(storage, database):
    with pytest.raises(InputError, match=r"model\.hidden is 50 here but 2 in") as caught:
        TrialDatabase(storage, "out", {**SETTINGS, "model.hidden": 50})
    assert "another --output (or --storage)" in str(caught.value)
    with pytest.raises(InputError, match="new is 1 here but None in the trial database"):
        TrialDatabase(storage, "out", {**SETTINGS, "new": 1})
    TrialDatabase(storage, "out", {**SETTINGS, "search.seeds": (0, 1)}).close()


def test_a_ledger_of_an_earlier_version_is_refused(storage, database):
    database.study.set_user_attr("settings", SETTINGS)  # where that kept them
    with pytest.raises(InputError, match="made by an earlier version of onelayer"):
        open_database(storage)


def test_of_values_that_come_at_once_the_first_is_kept_for_all(storage):
    def bring(i):
        with closing(open_database(storage)) as database:
            return database.keep("members", i)

    assert len(set(in_threads(4, bring))) == 1


def test_optuna_reads_the_ledger(storage, database):
    plan = make_plan(2)
    database.study.add_trial(optuna.trial.create_trial(value=0.0))  # not ours: it disturbs nobody
    finish(database, plan)
    _, *trials = read_trials(storage)
    assert [t.params["l2"] for t in trials] == [p.l2 for p in plan]
    range_ = optuna.distributions.FloatDistribution(LOW, HIGH, log=True)
    assert trials[0].distributions["l2"] == range_
    known = ("stage", "index", "group", "seed")
    assert [[t.user_attrs[k] for k in known] for t in trials] == [
        [getattr(p, k) for k in known] for p in plan
    ]
    assert [t.user_attrs["val_accuracy"] for t in trials] == [t.value for t in trials]


def test_what_is_searched_beside_l2_are_parameters_of_their_own(storage):
    settings = {"search.hidden": [2, 9], "search.flip": [False, True]}
    (planned, *_) = make_plan(1)
    planned = replace(planned, setting=(("flip", True), ("hidden", 9)))
    with closing(TrialDatabase(storage, "out", settings)) as database:
        database.record([planned], figures_of([planned]))
    (trial,) = read_trials(storage)
    assert trial.params == {"l2": planned.l2, "flip": True, "hidden": 9}
    assert trial.distributions["hidden"].choices == (2, 9)


@pytest.mark.parametrize("name", ["what?x=1", "a {b} 100%", "α#β", "c@d:e"])
def test_a_file_may_have_any_name(tmp_path, name):
    path = tmp_path / name / "search.db"
    with closing(open_database(URL.create("sqlite", database=str(path)))) as database:
        finish(database, make_plan(1))
    assert path.is_file()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert sorted(p.name for p in path.parent.iterdir()) == ["search.db", "search.db.locks"]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nonsense", "cannot open the trial database: Could not parse"),
        ("sqlite://", "is a SQLite file or a PostgreSQL database, not sqlite://"),
        ("sqlite:///:memory:", "is a SQLite file or a PostgreSQL database"),
        ("mysql://me:secret@host/base", r"PostgreSQL database, not mysql://me:\*\*\*@host/base"),
        (
            "sqlite:///FOLDER/broken.db",
            "cannot open the trial .*file is not a database",
        ),
        ("sqlite:///FOLDER/broken.db/search.db", "cannot open the trial database sqlite"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/base", r"cannot open .*\*\*\*.*refused"),
        ("postgresql+pg8000://me@127.0.0.1:1/base", "(?s)pg8000.*pip install 'onelayer.postgres.'"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_in_a_few_lines(storage, message, tmp_path):
    if "psycopg" in storage:
        pytest.importorskip("psycopg")
    (tmp_path / "broken.db").write_text("this is no database\n" * 100)
    with pytest.raises(InputError, match=message) as caught:
        open_database(storage.replace("FOLDER", str(tmp_path)))
    assert len(str(caught.value).splitlines()) <= 3
    assert "secret" not in str(caught.value)


def test_a_database_that_fails_later_says_how_to_go_on(tmp_path):
    path, plan = tmp_path / "search.db", make_plan(1)
    with closing(open_database(f"sqlite:///{path}")) as database:
        path.write_bytes(b"no database" * 10000)
        for use in (database.unfinished, lambda plan: database.record(plan, figures_of(plan))):
            with pytest.raises(InputError, match="the same command goes on from there"):
                use(plan)

"""The ledger alone: whatever processes do or suffer, each trial is trained once and kept."""

import json
import math
import os
import signal
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from onelayer.core.errors import InputError
from onelayer.study import ledger as module
from onelayer.study.ledger import Ledger, is_finite
from tests.claiming import (
    HIGH,
    LOW,
    SETTINGS,
    figures_of,
    make_plan,
    open_ledger,
    processes,
    share,
)
from tests.study.tiny import read_trials


@pytest.fixture
def ledger(storage):
    with closing(open_ledger(storage)) as ledger:
        yield ledger


def states(ledger):
    return [trial.state for trial in ledger.study.trials]


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


def test_trials_are_entered_once_however_often_they_are_enqueued(ledger):
    for _ in range(2):
        ledger.enqueue(make_plan(3), LOW, HIGH)
        ledger.release_abandoned(make_plan(3), LOW, HIGH)
    assert states(ledger) == [TrialState.WAITING] * 6


def test_stages_do_not_mix(ledger):
    for stage in (1, 2):
        ledger.enqueue(make_plan(2, stage), LOW, HIGH)
    assert {planned.stage for planned in ledger.claim(make_plan(2, 2))} == {2}
    assert [t.state for t in ledger.trials(1).values()] == [TrialState.WAITING] * 4


def test_threads_that_open_one_new_database_share_its_trials(storage):
    claimed = in_threads(4, lambda _: share(storage))
    assert sorted(part for parts in claimed for part in parts) == list(range(6))
    assert [t.state for t in read_trials(storage)] == [TrialState.COMPLETE] * 12


def test_processes_that_open_one_new_database_share_its_trials(storage):
    with processes(3, storage, "share") as started:
        claimed = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert sorted(part for parts in claimed for part in parts) == list(range(6))
    trials = read_trials(storage)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 12  # none entered twice
    values = {(t.user_attrs["index"], t.user_attrs["seed"]): t.value for t in trials}
    plan = make_plan(6)
    expected = [f["val_accuracy"] for f in figures_of(plan)]
    assert [values[p.index, p.seed] for p in plan] == expected


def test_a_pass_is_put_back_when_its_process_was_killed_and_not_before(storage):
    plan = make_plan(1)
    with processes(1, storage, "hold") as (process,), closing(open_ledger(storage)) as ledger:
        assert json.loads(process.stdout.readline()) == "held"
        ledger.release_abandoned(plan, LOW, HIGH)
        assert ledger.claim(plan) is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        ledger.release_abandoned(plan, LOW, HIGH)
        assert ledger.claim(plan) == plan
        assert states(ledger) == [TrialState.FAIL] * 2 + [TrialState.RUNNING] * 2


def test_a_killed_process_is_dead_though_nobody_has_waited_for_it(storage):
    plan = make_plan(1)
    with processes(1, storage, "hold") as (process,), closing(open_ledger(storage)) as ledger:
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while (members := ledger.claim(plan)) is None and time.monotonic() < end:
            ledger.release_abandoned(plan, LOW, HIGH)
        assert members == plan


def test_what_was_told_before_a_kill_stays_and_the_rest_is_trained_again(storage):
    plan = make_plan(1)
    with processes(1, storage, "die_recording") as (process,):
        assert process.wait(60) == -signal.SIGKILL
    with closing(open_ledger(storage)) as ledger:
        assert states(ledger) == [TrialState.RUNNING, TrialState.COMPLETE]
        assert not ledger.is_complete(plan)
        ledger.release_abandoned(plan, LOW, HIGH)
        assert ledger.claim(plan) == plan  # all of it: a pass is trained as one
        others = [{"val_cost": 9.0, "val_accuracy": 0.9} for _ in plan]
        ledger.record(plan, others)
        assert ledger.is_complete(plan)
        values = [ledger.trials(1)[0, seed].value for seed in (0, 1)]
        assert values == [0.9, figures_of(plan)[1]["val_accuracy"]]


def test_a_pass_taken_but_not_signed_is_put_back(ledger):
    plan = make_plan(1)
    ledger.enqueue(plan, LOW, HIGH)
    ledger.study.ask()  # takes the first waiting trial, as a process killed at once would leave it
    assert ledger.claim(plan) is None
    ledger.release_abandoned(plan, LOW, HIGH)
    assert ledger.claim(plan) == plan


def test_a_trial_that_failed_and_was_not_entered_again_disturbs_nobody(ledger):
    plan = make_plan(1)
    ledger.enqueue(plan, LOW, HIGH)
    ledger.study.tell(ledger.study.ask(), state=TrialState.FAIL)
    assert not ledger.is_complete(plan)
    assert ledger.claim(plan) is None
    ledger.release_abandoned(plan, LOW, HIGH)
    assert ledger.claim(plan) == plan


def test_of_trials_entered_twice_the_first_that_did_not_fail_counts(ledger):
    plan = make_plan(2)
    ledger.enqueue(plan, LOW, HIGH)
    for trial in ledger.study.trials:
        ledger.study.add_trial(trial)
    while members := ledger.claim(plan):
        ledger.record(members, figures_of(members))
    assert ledger.is_complete(plan)
    assert states(ledger) == [TrialState.COMPLETE] * 4 + [TrialState.WAITING] * 4


def test_an_exception_while_a_pass_is_trained_puts_it_back_at_once(ledger):
    plan = make_plan(1)
    ledger.enqueue(plan, LOW, HIGH)
    with pytest.raises(KeyboardInterrupt), ledger.alive(ledger.claim(plan)):
        raise KeyboardInterrupt
    ledger.release_abandoned(plan, LOW, HIGH)
    assert ledger.claim(plan) == plan


def test_a_process_on_another_machine_is_given_up_after_a_silence_by_our_clock(
    storage, monkeypatch
):
    plan, clock = make_plan(1), SimpleNamespace(now=1000.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: 1e6 - clock.now)
    monkeypatch.setattr(module, "time", fake)

    def sign_from_elsewhere(use):
        with monkeypatch.context() as context, closing(open_ledger(storage)) as other:
            context.setattr(module, "_machine", lambda: "elsewhere")
            use(other)

    def claim(other):
        other.enqueue(plan, LOW, HIGH)
        assert other.claim(plan) == plan

    def beat(other):
        monkeypatch.setattr(module, "BEAT", 0.01)
        with other.alive(plan):
            time.sleep(0.2)

    def is_put_back(ledger, after):
        clock.now += after
        ledger.release_abandoned(plan, LOW, HIGH)
        return ledger.trials(1)[0, 0].state == TrialState.WAITING

    sign_from_elsewhere(claim)
    with closing(open_ledger(storage)) as ledger:
        assert not is_put_back(ledger, after=1e5)  # its clock may be wrong: we count from now
        assert not is_put_back(ledger, after=module.SILENCE - 1)
        sign_from_elsewhere(beat)
        assert not is_put_back(ledger, after=2)
        assert not is_put_back(ledger, after=module.SILENCE)
        assert is_put_back(ledger, after=1)
        assert ledger.claim(plan) == plan


def test_a_process_that_was_taken_for_dead_changes_nothing_when_it_comes_back(storage, monkeypatch):
    plan = make_plan(1)
    monkeypatch.setattr(module, "BEAT", 0.01)
    with closing(open_ledger(storage)) as late, closing(open_ledger(storage)) as other:
        late.enqueue(plan, LOW, HIGH)
        with late.alive(late.claim(plan)):
            for trial in other.study.trials:
                other.study.tell(trial.number, state=TrialState.FAIL)
            other.release_abandoned(plan, LOW, HIGH)
            other.record(other.claim(plan), figures_of(plan))
            time.sleep(0.1)  # the late one's signs of life find a trial that has ended
        late.record(plan, [{"val_accuracy": 1.0}] * 2)
        assert late.is_complete(plan)
        values = [late.trials(1)[0, seed].value for seed in (0, 1)]
        assert values == [f["val_accuracy"] for f in figures_of(plan)]


def test_figures_that_are_no_numbers_become_null_and_rank_last(ledger):
    plan = make_plan(2)
    ledger.enqueue(plan, LOW, HIGH)
    wild = [{"val_cost": math.nan, "val_accuracy": 0.1}, {"val_cost": 1, "val_accuracy": math.inf}]
    ledger.record(ledger.claim(plan), wild)
    ledger.record(ledger.claim(plan), figures_of(plan[2:]))
    assert ledger.is_complete(plan)
    first, second = (ledger.trials(1)[0, seed] for seed in (0, 1))
    assert (first.value, first.user_attrs["val_cost"]) == (0.0, None)
    assert (second.value, second.user_attrs["val_accuracy"]) == (0.0, None)
    assert not is_finite({"val_cost": first.user_attrs["val_cost"]})
    assert not is_finite(wild[1])
    assert is_finite(figures_of(plan)[0])
    assert ledger.study.best_trial.params["l2"] == plan[2].l2


def test_other_settings_are_refused_with_both_values(storage, ledger):
    with pytest.raises(InputError, match=r"model\.hidden is 50 here but 2 there") as caught:
        Ledger(storage, "out", {**SETTINGS, "model.hidden": 50})
    assert "another --output (or --storage)" in str(caught.value)
    with pytest.raises(InputError, match="new is 1 here but None there"):
        Ledger(storage, "out", {**SETTINGS, "new": 1})
    Ledger(storage, "out", {**SETTINGS, "search.seeds": (0, 1)}).close()
    Ledger(storage, "other", {"model.hidden": 50}).close()  # another study in the same database


def test_of_settings_that_come_at_once_the_first_are_kept_for_all(storage):
    def bring(i):
        with closing(open_ledger(storage)) as ledger:
            return ledger.keep("members", i)

    assert len(set(in_threads(4, bring))) == 1


def test_optuna_reads_the_ledger(storage, ledger):
    plan = make_plan(2)
    ledger.enqueue(plan, LOW, HIGH)
    while members := ledger.claim(plan):
        ledger.record(members, figures_of(members))
    trials = read_trials(storage)
    assert [t.params["l2"] for t in trials] == [p.l2 for p in plan]
    assert trials[0].distributions["l2"] == optuna.distributions.FloatDistribution(
        LOW, HIGH, log=True
    )
    known = ("stage", "index", "part", "seed")
    assert [[t.user_attrs[k] for k in known] for t in trials] == [
        [getattr(p, k) for k in known] for p in plan
    ]
    assert [t.user_attrs["val_accuracy"] for t in trials] == [t.value for t in trials]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nonsense", "cannot open the ledger: Could not parse"),
        ("sqlite://", "is a SQLite file or a PostgreSQL database, not sqlite://"),
        ("sqlite:///:memory:", "is a SQLite file or a PostgreSQL database"),
        ("mysql://me:secret@host/base", r"PostgreSQL database, not mysql://me:\*\*\*@host/base"),
        ("sqlite:///FOLDER/broken.db", "cannot open the ledger sqlite.*file is not a database"),
        ("sqlite:///FOLDER/broken.db/search.db", "cannot open the ledger sqlite"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/base", r"cannot open .*\*\*\*.*refused"),
        ("postgresql+pg8000://me@127.0.0.1:1/base", "(?s)pg8000.*pip install 'onelayer.postgres.'"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_in_a_few_lines(storage, message, tmp_path):
    if "psycopg" in storage:
        pytest.importorskip("psycopg")
    (tmp_path / "broken.db").write_text("this is no database\n" * 100)
    with pytest.raises(InputError, match=message) as caught:
        open_ledger(storage.replace("FOLDER", str(tmp_path)))
    assert len(str(caught.value).splitlines()) <= 3
    assert "secret" not in str(caught.value)


def test_a_database_that_fails_later_says_how_to_go_on(tmp_path):
    database, plan = tmp_path / "search.db", make_plan(1)
    with closing(open_ledger(f"sqlite:///{database}")) as ledger:
        ledger.enqueue(plan, LOW, HIGH)
        database.write_bytes(b"no database" * 10000)
        for use in (ledger.claim, ledger.is_complete):
            with pytest.raises(InputError, match="the same command goes on from there"):
                use(plan)

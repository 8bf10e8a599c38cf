"""The ledger of a search: an Optuna study in a database that several processes may share.

One trial is one network: its λ, seed, stage and every figure stand in it, for Optuna's own tools
to read. The unit of work is a *pass*, the trials that are trained together as one population. Which
trials make a pass is part of the plan, so a pass that is trained again gives the same bits.

Whatever changes the ledger happens under one lock, a file beside SQLite or an advisory lock of
PostgreSQL, which ends with the process that holds it. A pass belongs to the process that turned its
first trial, the leader, from WAITING to RUNNING, and signed it. It is finished when the leader,
told last, is COMPLETE. A trial whose process died is marked FAIL, as Optuna's own heartbeat does,
and entered anew.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from onelayer.core.errors import InputError, first_line

BEAT = 5.0
"""Seconds between two signs of life of a process that trains a pass."""
SILENCE = 60.0
"""Seconds without a new sign after which a pass on another machine counts as abandoned."""
LOCK_KEY = int.from_bytes(b"onelayer", "big")
"""Of PostgreSQL's advisory lock: one for all ledgers of a database, whose tables they share."""


@dataclass(frozen=True)
class Planned:
    """One network to train: its place in the plan and its hyperparameters."""

    stage: int
    index: int
    part: int
    l2: float
    seed: int


class Ledger:
    """The trials of one search.

    Args:
        storage: SQLAlchemy URL of a SQLite file or a PostgreSQL database, such as
            sqlite:///search.db or postgresql+psycopg://host/base.
        name: of the study.
        settings: all that decides which networks are trained and how; kept in the study, and
            compared when the study is opened again.

    Raises:
        InputError: if the database cannot be opened, or the study was made with other settings.
            Every method raises it if the database fails later.
    """

    def __init__(self, storage: str, name: str, settings: Mapping[str, Any]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.place = "the ledger"
        self._seen: dict[int, tuple[float, float]] = {}
        try:
            url = make_url(storage)
            self.place = f"the ledger {url.render_as_string(hide_password=True)}"
            self._lock, options = _lock_of(url)
            with self._lock():
                self._storage = RDBStorage(storage, engine_kwargs=options)
                self.study = optuna.create_study(
                    storage=self._storage,
                    study_name=name,
                    direction="maximize",
                    load_if_exists=True,
                )
        except InputError:
            raise
        except Exception as error:  # of drivers, SQLAlchemy, Alembic, Optuna, the file system
            raise InputError(f"cannot open {self.place}: {_reason(error)}") from error
        try:
            _check_same(self.keep("settings", dict(settings)), settings, self.place)
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections to the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (StorageInternalError, SQLAlchemyError, OSError) as error:
            raise InputError(
                f"{self.place} failed: {_reason(error)}\n"
                "What is finished is kept: the same command goes on from there."
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes. Not to be nested."""
        with self._translated(), self._lock():
            yield

    def keep(self, key: str, value: Any) -> Any:
        """The value that all processes use for ``key``: the first to bring one decides."""
        with self._locked():
            if key not in self.study.user_attrs:
                self.study.set_user_attr(key, value)
            return self.study.user_attrs[key]

    def trials(self, stage: int) -> dict[tuple[int, int], FrozenTrial]:
        """The trial that counts for each (index, seed) of a stage: the first that did not fail."""
        result: dict[tuple[int, int], FrozenTrial] = {}
        with self._translated():
            trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            attrs = trial.user_attrs
            if attrs.get("stage") == stage and trial.state != TrialState.FAIL:
                result.setdefault((attrs["index"], attrs["seed"]), trial)
        return result

    def enqueue(self, plan: Sequence[Planned], low: float, high: float) -> None:
        """Enter the trials of a stage that are not there yet; any number of processes may."""
        with self._locked():
            self._enter(plan, low, high)

    def _enter(self, plan: Sequence[Planned], low: float, high: float) -> None:
        there = self.trials(plan[0].stage)
        for planned in plan:
            if (planned.index, planned.seed) not in there:
                trial = optuna.trial.create_trial(
                    state=TrialState.WAITING,
                    system_attrs={"fixed_params": {"l2": planned.l2}},
                    params={"l2": planned.l2},
                    distributions={"l2": FloatDistribution(low, high, log=True)},
                    user_attrs=asdict(planned),
                )
                self.study.add_trial(trial)

    def claim(self, plan: Sequence[Planned]) -> list[Planned] | None:
        """A pass of ``plan`` that nobody else trains; None if there is none now."""
        with self._locked():
            trials = self.trials(plan[0].stage)
            for members in _passes(plan):
                found = [trials.get((planned.index, planned.seed)) for planned in members]
                waiting = [t for t in found if t is not None and t.state == TrialState.WAITING]
                # The leader comes first: a process killed in here has taken it, or nothing.
                if waiting and waiting[0] is found[0] and self._take(waiting[0]):
                    for trial in waiting[1:]:
                        self._take(trial)
                    return members
        return None

    def _take(self, trial: FrozenTrial) -> bool:
        taken = self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        if taken:
            self._sign(trial)
        return taken

    def _sign(self, trial: FrozenTrial) -> None:
        owner = [_machine(), os.getpid(), _started(os.getpid()), time.time()]
        self._storage.set_trial_user_attr(trial._trial_id, "owner", owner)

    @contextmanager
    def alive(self, members: Sequence[Planned]) -> Iterator[None]:
        """Give signs of life for a claimed pass while it is trained; an exception puts it back."""
        leader = self.trials(members[0].stage)[members[0].index, members[0].seed]
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT):
                # One sign missed is no harm; nor is another process that took us for dead.
                with suppress(InputError, UpdateFinishedTrialError), self._locked():
                    self._sign(leader)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with suppress(InputError):
                self._give_back(members)
            raise
        finally:
            done.set()
            thread.join()

    def _give_back(self, members: Sequence[Planned]) -> None:
        with self._locked():
            trials = self.trials(members[0].stage)
            for planned in members:
                self._fail(trials.get((planned.index, planned.seed)))

    def record(self, members: Sequence[Planned], figures: Sequence[Mapping[str, float]]) -> None:
        """Tell the figures of a pass, the leader's last; trials told before a kill stay as told."""
        with self._locked():
            trials = self.trials(members[0].stage)
            for planned, values in reversed(list(zip(members, figures, strict=True))):
                trial = trials.get((planned.index, planned.seed))
                if trial is None or trial.state.is_finished():
                    continue  # told before a kill, or by a process that took this one for dead
                for name, value in values.items():
                    # JSON in databases knows neither NaN nor infinity: null is what diverged.
                    plain = value if math.isfinite(value) else None
                    self._storage.set_trial_user_attr(trial._trial_id, name, plain)
                # Optuna has no ranking for NaN either: a diverged network counts as 0.
                score = values["val_accuracy"] if is_finite(values) else 0.0
                self._storage.set_trial_state_values(
                    trial._trial_id, TrialState.COMPLETE, values=[score]
                )

    def release_abandoned(self, plan: Sequence[Planned], low: float, high: float) -> None:
        """Put back what dead processes were training."""
        with self._locked():
            trials = self.trials(plan[0].stage)
            for members in _passes(plan):
                found = [trials.get((planned.index, planned.seed)) for planned in members]
                leader = found[0]
                owned = leader is not None and leader.state == TrialState.RUNNING
                if leader is None or not owned or self._is_abandoned(leader):
                    for trial in found:
                        self._fail(trial)
            self._enter(plan, low, high)

    def _fail(self, trial: FrozenTrial | None) -> None:
        if trial is not None and trial.state == TrialState.RUNNING:
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get("owner")
        if owner is None:
            return True  # killed between taking and signing, which the lock keeps together
        machine, pid, started, sign = owner
        if machine == _machine():
            return bool(_started(pid) != started)
        # The clocks of two machines may differ: ours measures how long there was no new sign.
        now = time.monotonic()
        last, since = self._seen.get(trial._trial_id, (None, now))
        if last != sign:
            since = now
        self._seen[trial._trial_id] = sign, since
        return now - since > SILENCE

    def is_complete(self, plan: Sequence[Planned]) -> bool:
        """Whether every trial of the plan is COMPLETE."""
        trials = self.trials(plan[0].stage)
        found = [trials.get((planned.index, planned.seed)) for planned in plan]
        return all(t is not None and t.state == TrialState.COMPLETE for t in found)


def is_finite(figures: Mapping[str, float | None]) -> bool:
    """Whether a network's figures are all numbers: it has not diverged."""
    return all(value is not None and math.isfinite(value) for value in figures.values())


def _passes(plan: Sequence[Planned]) -> list[list[Planned]]:
    """The passes of a plan, in its order; each begins with its leader."""
    passes: dict[int, list[Planned]] = {}
    for planned in plan:
        passes.setdefault(planned.part, []).append(planned)
    return list(passes.values())


def _lock_of(url: URL) -> tuple[Callable[[], AbstractContextManager[Any]], dict[str, Any]]:
    """What excludes all other processes from a database, and the options of its engine."""
    kind, database = url.get_backend_name(), url.database
    if kind == "sqlite" and database and database != ":memory:":
        path = Path(database)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Connections to a file are cheap: none is kept open.
        return lambda: FileLock(f"{path}.lock"), {"poolclass": NullPool}
    if kind == "postgresql":
        return lambda: _advisory_lock(url), {"pool_pre_ping": True}
    raise InputError(
        f"a ledger is a SQLite file or a PostgreSQL database, not {url.render_as_string()}:\n"
        "sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE."
    )


@contextmanager
def _advisory_lock(url: URL) -> Iterator[None]:
    """PostgreSQL's own lock, which the server takes back when the connection ends."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        yield


def _reason(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return f"{error}\nInstall the database's driver: pip install 'onelayer[postgres]'."
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__  # Optuna's own words say nothing
    return first_line(error)


def _machine() -> str:
    """Where a process id means something: this machine, since it started, and its namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # no Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process of this machine started, as its own mark; None if there is no such process."""
    try:
        # Field 22 of /proc/PID/stat; the name before it may hold spaces and parentheses.
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _alive_mark(pid)
    started: str = stat[19]
    return None if stat[0] == "Z" else started


def _alive_mark(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def _check_same(kept: Mapping[str, Any], settings: Mapping[str, Any], place: str) -> None:
    here = json.loads(json.dumps(dict(settings)))  # as the database holds them: lists, no tuples
    differences = [
        f"{key} is {here.get(key)!r} here but {kept.get(key)!r} there"
        for key in sorted({*kept, *here})
        if kept.get(key) != here.get(key)
    ]
    if differences:
        raise InputError(
            f"{place} belongs to a search with other settings:\n"
            + "\n".join(differences[:2])
            + "\nUse those settings, or another --output (or --storage)."
        )

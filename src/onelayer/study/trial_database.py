"""The database of a search: an Optuna study in a database that several processes may share.

One trial is one finished network. Its parameters are l2 and the other searched arguments, its value
is the accuracy on validation. Stage, index, group, seed and all results are user attributes.

Networks are trained in groups (see :mod:`onelayer.study.plan`). A process claims a group by its
lock: a file lock with SQLite, an advisory lock of the session with PostgreSQL. The kernel or server
releases the lock as soon as the process ends, however it ends. Optuna's heartbeat takes seconds for
that, and also gives away the trials of a process that is only suspended.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from onelayer.core.checks import check_same
from onelayer.core.errors import InputError, first_line
from onelayer.study.plan import AXES, Planned, groups_of

Lock = Callable[[str, bool], AbstractContextManager[bool]]
"""(name, wait) to a context that tries to hold this lock, and yields whether it does."""
ALL = "onelayer"
"""Name of the lock for writing, one for all studies of a database."""

KEEPALIVES = (
    "SET tcp_keepalives_idle=30; SET tcp_keepalives_interval=10; SET tcp_keepalives_count=3"
)
"""PostgreSQL releases the locks of a machine that is gone within a minute: 30 s + 3 · 10 s."""


class TrialDatabase:
    """The finished networks of one search.

    Args:
        storage: URL of a SQLite file or a PostgreSQL database, such as sqlite:///search.db or
            postgresql+psycopg://host/base.
        name: name of the study.
        settings: everything that decides which networks are trained and how; kept in the study, and
            compared when it is opened again.

    Raises:
        InputError: if the database cannot be opened, or the study was made with other settings.
            Every method raises it if the database fails later.

    Attributes:
        study: Optuna's.
        title: "the trial database" and its URL without the password.
    """

    def __init__(self, storage: str | URL, name: str, settings: Mapping[str, Any]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.title = "the trial database"
        try:
            url = make_url(storage)
            self.title = f"the trial database {url.render_as_string(hide_password=True)}"
            self._lock, options = _locks_of(url)
            with self._lock(ALL, True):
                self._storage = RDBStorage(url.render_as_string(hide_password=False), options)
                self.study = optuna.create_study(
                    storage=self._storage, study_name=name, direction="maximize",
                    load_if_exists=True,
                )  # fmt: skip
        except InputError:
            raise
        except Exception as error:  # of drivers, SQLAlchemy, Alembic, Optuna, the file system
            raise InputError(f"cannot open {self.title}: {_reason(error)}") from error
        searched = {name: settings.get(f"search.{name}") for name in AXES}
        self._axes = {k: CategoricalDistribution(v) for k, v in searched.items() if v}
        try:
            self._check(settings)
        except InputError:
            self.close()
            raise

    def _check(self, settings: Mapping[str, Any]) -> None:
        if "settings" in self.study.user_attrs:
            raise InputError(
                f"{self.title} was made by an earlier version of onelayer:\n"
                "use another --output (or --storage)."
            )
        here = json.loads(json.dumps(settings))  # as the database holds them: lists, no tuples
        saved = self.keep("search", here)
        advice = "Use its hyperparameters, or another --output (or --storage)."
        check_same("the trial database", here, saved, advice)

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
                f"{self.title} failed: {_reason(error)}\n"
                "What is finished is kept: the same command goes on from there."
            ) from error

    def keep(self, key: str, value: Any) -> Any:
        """Return the value that all processes use for ``key``: that of the first process."""
        with self._translated(), self._lock(ALL, True):
            if key not in self.study.user_attrs:
                self.study.set_user_attr(key, value)
            return self.study.user_attrs[key]

    def trials(self) -> dict[tuple[int, int, int], FrozenTrial]:
        """Return the finished networks by their keys (stage, index, seed)."""
        with self._translated():
            trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        found = [t for t in trials if "stage" in t.user_attrs]  # others are not ours
        return {tuple(t.user_attrs[k] for k in ("stage", "index", "seed")): t for t in found}

    def unfinished(self, plan: Sequence[Planned]) -> list[list[Planned]]:
        """Return the groups of a stage with an unfinished network."""
        trials = self.trials()
        return [group for group in groups_of(plan) if any(p.key not in trials for p in group)]

    @contextmanager
    def claim(self, plan: Sequence[Planned]) -> Iterator[list[Planned] | None]:
        """Claim an unfinished group of a stage, and yield it.

        None if there is none now: all are finished, or other processes train them.
        """
        for group in self.unfinished(plan):
            with ExitStack() as held:
                with self._translated():
                    # A group's lock serves all stages: files of locks stay few.
                    lock = self._lock(f"{self.study.study_name} {group[0].group}", False)
                    mine = held.enter_context(lock)
                if mine and group in self.unfinished(plan):  # not finished a moment ago
                    yield group
                    return
        yield None

    def record(self, group: Sequence[Planned], figures: Sequence[Mapping[str, float]]) -> None:
        """Record the networks of a group with their results; recorded ones stay as they are.

        A process that was killed here has recorded some. The group is then trained again, to the
        same bits.
        """
        with self._translated(), self._lock(ALL, True):
            there = self.trials()
            for planned, values in zip(group, figures, strict=True):
                if planned.key not in there:
                    self.study.add_trial(_trial(planned, values, self._axes))


def is_finite(figures: Mapping[str, float | None]) -> bool:
    """Return whether all results of a network are numbers: it has not diverged."""
    return all(value is not None and math.isfinite(value) for value in figures.values())


def _trial(
    planned: Planned, figures: Mapping[str, float], axes: Mapping[str, CategoricalDistribution]
) -> FrozenTrial:
    known = {k: getattr(planned, k) for k in ("stage", "index", "group", "seed")}
    # JSON in databases knows neither NaN nor infinity: null is what diverged.
    known |= {k: value if math.isfinite(value) else None for k, value in figures.items()}
    return create_trial(
        state=TrialState.COMPLETE,
        params={"l2": planned.l2, **dict(planned.setting)},
        distributions={"l2": FloatDistribution(planned.low, planned.high, log=True), **axes},
        user_attrs=known,
        # Optuna has no ranking for NaN either: a diverged network counts as 0.
        value=figures["val_accuracy"] if is_finite(figures) else 0.0,
    )


def _locks_of(url: URL) -> tuple[Lock, dict[str, Any]]:
    """Return the locks for a database, and the options of its engine."""
    kind, database = url.get_backend_name(), url.database
    if kind == "sqlite" and database and database != ":memory:":
        folder = Path(f"{database}.locks")
        folder.mkdir(parents=True, exist_ok=True)
        # Connections to a file are cheap: none is kept open.
        return partial(_file_lock, folder), {"poolclass": NullPool}
    if kind == "postgresql":
        utf8 = {"client_encoding": "utf8"}  # also where the database's own is SQL_ASCII
        # A connection is a session of the server: closed, it leaves no lock, whatever is running.
        sessions = create_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT", pool_reset_on_return=None, **utf8
        )
        return partial(_advisory_lock, sessions), {"pool_pre_ping": True, **utf8}
    raise InputError(
        "a trial database is a SQLite file or a PostgreSQL database, not "
        f"{url.render_as_string()}:\n"
        "sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE."
    )


@contextmanager
def _file_lock(folder: Path, name: str, wait: bool) -> Iterator[bool]:
    """Hold a lock on a file, which the kernel releases when the process ends; the file stays."""
    lock = FileLock(folder / f"{_digest(name).hex()}.lock")
    with suppress(Timeout):
        lock.acquire(timeout=-1 if wait else 0)
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def _advisory_lock(sessions: Engine, name: str, wait: bool) -> Iterator[bool]:
    """Hold a lock of PostgreSQL, which the server releases when the connection ends."""
    function = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    with sessions.connect() as session:
        session.execute(text(KEEPALIVES))
        key = int.from_bytes(_digest(name), "big", signed=True)
        yield session.scalar(text(f"SELECT {function}(:key)"), {"key": key}) is not False


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:8]


def _reason(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return f"{error}\nInstall the database's driver: pip install 'onelayer[postgres]'."
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__  # Optuna's own words say nothing
    return first_line(error)

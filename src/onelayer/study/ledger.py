"""The ledger of a search: an Optuna study in a database that several processes may share.

One trial is one network: its λ, seed, stage and every figure stand in it, for Optuna's own tools
to read. The unit of work is a *pass*, the trials that are trained together as one population. Which
trials make a pass is part of the plan, so a pass that is trained again gives the same bits.

A pass is claimed through its first trial, the leader: Optuna lets exactly one process turn it from
WAITING to RUNNING. It is finished when the leader, told last, is COMPLETE. A trial whose process
died is marked FAIL, as Optuna's own heartbeat does, and enqueued anew.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from onelayer.core.errors import InputError

BEAT = 5.0
"""Seconds between two signs of life of a process that trains a pass."""
SILENCE = 60.0
"""Seconds without a sign after which a pass on another machine counts as abandoned."""


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
        storage: SQLAlchemy URL, such as sqlite:///search.db or postgresql+psycopg://host/base.
        name: of the study.
        settings: all that decides which networks are trained and how; kept in the study, and
            compared when the study is opened again.

    Raises:
        InputError: if the database cannot be opened, or the study was made with other settings.
    """

    def __init__(self, storage: str, name: str, settings: Mapping[str, Any]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._lock = _lock_beside(storage)
        try:
            with self._lock:
                self.study = optuna.create_study(
                    study_name=name, storage=storage, direction="maximize", load_if_exists=True
                )
                kept = self.study.user_attrs.get("settings")
                if kept is None:
                    self.study.set_user_attr("settings", dict(settings))
        except InputError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"cannot open the ledger {storage}: {reason}") from error
        if kept is not None:
            _check_same(kept, settings, storage)
        self._storage = self.study._storage

    def close(self) -> None:
        """Close the connections to the database."""
        self._storage.remove_session()
        backend: Any = getattr(self._storage, "_backend", self._storage)
        backend.engine.dispose()

    def trials(self, stage: int) -> dict[tuple[int, int], FrozenTrial]:
        """The trial that counts for each (index, seed) of a stage: the first that did not fail."""
        result: dict[tuple[int, int], FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            attrs = trial.user_attrs
            if attrs.get("stage") == stage and trial.state != TrialState.FAIL:
                result.setdefault((attrs["index"], attrs["seed"]), trial)
        return result

    def enqueue(self, plan: Sequence[Planned], low: float, high: float) -> None:
        """Enter the trials of a stage that are not there yet; any number of processes may."""
        distribution = FloatDistribution(low, high, log=True)
        with self._lock:
            there = self.trials(plan[0].stage) if plan else {}
            for planned in plan:
                if (planned.index, planned.seed) not in there:
                    trial = optuna.trial.create_trial(
                        state=TrialState.WAITING,
                        system_attrs={"fixed_params": {"l2": planned.l2}},
                        params={"l2": planned.l2},
                        distributions={"l2": distribution},
                        user_attrs=asdict(planned),
                    )
                    self.study.add_trial(trial)

    def claim(self, plan: Sequence[Planned]) -> list[Planned] | None:
        """A pass of ``plan`` that nobody else trains; None if there is none now."""
        with self._lock:
            trials = self.trials(plan[0].stage)
            for part in sorted({planned.part for planned in plan}):
                members = [planned for planned in plan if planned.part == part]
                leader = trials[members[0].index, members[0].seed]
                if leader.state == TrialState.WAITING and self._take(leader):
                    for planned in members[1:]:
                        other = trials[planned.index, planned.seed]
                        if other.state == TrialState.WAITING:
                            self._take(other)
                    return members
        return None

    def _take(self, trial: FrozenTrial) -> bool:
        try:
            taken = self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        if taken:
            self._sign(trial)
        return taken

    def _sign(self, trial: FrozenTrial) -> None:
        owner = [socket.gethostname(), os.getpid(), _started(os.getpid()), time.time()]
        self._storage.set_trial_user_attr(trial._trial_id, "owner", owner)

    @contextmanager
    def alive(self, members: Sequence[Planned]) -> Iterator[None]:
        """Give signs of life for a claimed pass while it is trained."""
        leader = self.trials(members[0].stage)[members[0].index, members[0].seed]
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT):
                with self._lock:
                    self._sign(leader)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def record(self, members: Sequence[Planned], figures: Sequence[Mapping[str, float]]) -> None:
        """Tell the figures of a pass, the leader's last; trials told before a kill stay as told."""
        with self._lock:
            trials = self.trials(members[0].stage)
            for planned, values in reversed(list(zip(members, figures, strict=True))):
                trial = trials[planned.index, planned.seed]
                if trial.state.is_finished():
                    continue
                for name, value in values.items():
                    # JSON in databases knows neither NaN nor infinity: null is what diverged.
                    plain = value if math.isfinite(value) else None
                    self._storage.set_trial_user_attr(trial._trial_id, name, plain)
                # Optuna has no ranking for NaN either: a diverged network counts as 0.
                score = values["val_accuracy"] if is_finite(values) else 0.0
                self._storage.set_trial_state_values(
                    trial._trial_id, TrialState.COMPLETE, values=[score]
                )

    def release_abandoned(self, plan: Sequence[Planned]) -> None:
        """Put back what dead processes were training."""
        with self._lock:
            trials = self.trials(plan[0].stage)
            for part in {planned.part for planned in plan}:
                members = [planned for planned in plan if planned.part == part]
                leader = trials[members[0].index, members[0].seed]
                running = [
                    trial
                    for planned in members
                    if (trial := trials[planned.index, planned.seed]).state == TrialState.RUNNING
                ]
                owned = leader if leader.state == TrialState.RUNNING else None
                if running and (owned is None or _is_abandoned(owned)):
                    for trial in running:
                        self._fail(trial)
        self.enqueue(plan, *_bounds(trials))

    def _fail(self, trial: FrozenTrial) -> None:
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # somebody else was faster
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def is_complete(self, plan: Sequence[Planned]) -> bool:
        """Whether every trial of the plan is COMPLETE."""
        trials = self.trials(plan[0].stage)
        return all(
            trials[planned.index, planned.seed].state == TrialState.COMPLETE for planned in plan
        )


def is_finite(figures: Mapping[str, float | None]) -> bool:
    """Whether a network's figures are all numbers: it has not diverged."""
    return all(value is not None and math.isfinite(value) for value in figures.values())


def _bounds(trials: Mapping[Any, FrozenTrial]) -> tuple[float, float]:
    distribution: Any = next(iter(trials.values())).distributions["l2"]
    return distribution.low, distribution.high


def _lock_beside(storage: str) -> Any:
    """SQLite has no row locks: a file beside it serialises claims. Servers need none of ours."""
    prefix = "sqlite:///"
    if not storage.startswith(prefix):
        return nullcontext()
    path = Path(storage.removeprefix(prefix))
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock", thread_local=False)


def _is_abandoned(trial: FrozenTrial) -> bool:
    owner = trial.user_attrs.get("owner")
    if owner is None:
        return True  # killed between claiming and signing, which the lock keeps together
    host, pid, started, beat = owner
    if host == socket.gethostname():
        return bool(_started(pid) != started)
    return bool(time.time() - beat > SILENCE)


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


def _check_same(kept: Mapping[str, Any], settings: Mapping[str, Any], storage: str) -> None:
    differences = [
        f"{key} is {settings.get(key)!r} here but {kept.get(key)!r} there"
        for key in sorted({*kept, *settings})
        if kept.get(key) != settings.get(key)
    ]
    if differences:
        raise InputError(
            f"the ledger {storage} belongs to a search with other settings:\n"
            + "\n".join(differences[:2])
            + "\nUse those settings, or another --output (or --storage)."
        )

"""A process that works on a ledger without training anything.

``python -m tests.claiming URL WHAT`` says "ready" when all is imported, waits for a line, then does
WHAT, one of the functions below, and prints what it got as JSON.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from onelayer.study.ledger import Ledger, Planned

REPOSITORY = Path(__file__).resolve().parents[1]
LOW, HIGH = 1e-5, 1e-1
SETTINGS = {"model.hidden": 2, "search.seeds": [0, 1]}


def make_plan(passes, stage=1):
    """Passes of one λ with two seeds."""
    return [
        Planned(stage, index, index, LOW * 2**index, seed)
        for index in range(passes)
        for seed in (0, 1)
    ]


def figures_of(members):
    """What training would give: a pure function of the plan."""
    return [{"val_cost": p.l2, "val_accuracy": (p.index + p.seed / 8) / 16} for p in members]


def open_ledger(storage):
    return Ledger(storage, "out", SETTINGS)


def share(storage, passes=6):
    """Enter, claim and record until all is done; the passes that were claimed here."""
    ledger, plan, claimed = open_ledger(storage), make_plan(passes), []
    ledger.enqueue(plan, LOW, HIGH)
    while not ledger.is_complete(plan):
        ledger.release_abandoned(plan, LOW, HIGH)
        members = ledger.claim(plan)
        if members is None:
            time.sleep(0.02)
            continue
        claimed.append(members[0].part)
        with ledger.alive(members):
            time.sleep(0.02)
        ledger.record(members, figures_of(members))
    ledger.close()
    return claimed


def hold(storage):
    """Claim a pass and train it for ever."""
    ledger, plan = open_ledger(storage), make_plan(1)
    ledger.enqueue(plan, LOW, HIGH)
    with ledger.alive(ledger.claim(plan)):
        print(json.dumps("held"), flush=True)
        time.sleep(600)


def die_recording(storage):
    """Claim a pass and be killed when its first trial, told last, is about to be told."""

    class Deadly(dict):
        def items(self):
            os.kill(os.getpid(), signal.SIGKILL)

    ledger, plan = open_ledger(storage), make_plan(1)
    ledger.enqueue(plan, LOW, HIGH)
    members = ledger.claim(plan)
    first, *others = figures_of(members)
    ledger.record(members, [Deadly(first), *others])


@contextmanager
def processes(number, storage, what):
    """Processes that all begin at the same moment; those still alive at the end are killed."""
    command = [sys.executable, "-m", "tests.claiming", storage, what]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    started = [
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(number)
    ]
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def main(storage, what):
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(globals()[what](storage)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Work of processes on a trial database that train nothing."""

import json
import os
import random
import signal
import time
from contextlib import closing

from onelayer.study.plan import Planned
from onelayer.study.trial_database import TrialDatabase
from tests.support.killing import fork

LOW, HIGH = 1e-5, 1e-1
SETTINGS = {"model.hidden": 2, "search.seeds": [0, 1]}


def make_plan(groups, stage=1):
    """Groups of one λ with two seeds."""
    return [
        Planned(stage, index, index, LOW * 2**index, seed, LOW, HIGH)
        for index in range(groups)
        for seed in (0, 1)
    ]


def figures_of(group):
    """What training would give: a pure function of the plan."""
    return [{"val_cost": p.l2, "val_accuracy": (p.index + p.seed / 8) / 16} for p in group]


def open_database(storage):
    return TrialDatabase(storage, "out", SETTINGS)


def share(storage, groups=6, say=lambda *_: None):
    """Claim, train and record until all is finished; the groups that were recorded here."""
    plan, recorded = make_plan(groups), []
    with closing(open_database(storage)) as database:
        while database.unfinished(plan):
            with database.claim(plan) as group:
                if group:
                    say("begin", group[0].group)
                time.sleep(0.02)
                if group:
                    database.record(group, figures_of(group))
                    recorded.append(group[0].group)
                    say("end", group[0].group)
    return recorded


def attack(storage, number=4, groups=12, kills=12):
    """Share among processes of which one after another is killed at random and replaced.

    Prints the kills that hit a live process, and what was begun and recorded, in order.
    """
    rng, (reader, writer) = random.Random(str(number)), os.pipe()

    def work():
        share(storage, groups, lambda *words: os.write(writer, f"{json.dumps(words)}\n".encode()))
        return 0

    children, hits = [fork(work) for _ in range(number)], 0
    for _ in range(kills):
        time.sleep(rng.uniform(0, 0.15))
        victim = children.pop(rng.randrange(len(children)))
        os.kill(victim, signal.SIGKILL)
        hits += os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL
        children.append(fork(work))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(writer)
    with os.fdopen(reader) as lines:
        events = [json.loads(line) for line in lines]
    print(json.dumps({"hits": hits, "codes": codes, "events": events}))


def hold(storage, held):
    """Claim a group, set the event and train for ever."""
    with closing(open_database(storage)) as database, database.claim(make_plan(1)):
        held.set()
        time.sleep(600)


def die_recording(storage):
    """Claim a group and be killed when its second network is about to be entered."""

    class Deadly(dict):
        def items(self):
            os.kill(os.getpid(), signal.SIGKILL)

    with closing(open_database(storage)) as database, database.claim(make_plan(1)) as group:
        first, second = figures_of(group)
        database.record(group, [first, Deadly(second)])

"""Soak test: chains of kills at random moments, and whatever they changed.

    python -m tests.support.soak --seconds 600          (make soak SECONDS=600)

A chain starts a small training, search or report, kills it at random moments and starts it again,
at least three times, then lets it end and compares all that it left with an undisturbed one: bits
of weights, curves, TensorBoard values, plots, the trial database, the report's page. What a report
has finished may not change any more. Most kills are SIGKILL; some trainings get SIGTERM; some
chains have TMPDIR on another filesystem. Exit code 1 if anything differs.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir
from pathlib import Path

from tests.study.tiny import TINY
from tests.support.killing import attempt, fork, load_everything

FIT = [
    "fit", "--data.source=synthetic", "--data.limit=370", "--data.val_size=300",
    "--data.batch_size=10", "--schedule.step_size=100", "--schedule.cycles=3", "--model.hidden=4",
    "--model.l2=[0.0,0.01]", "--model.seeds=[0,1]", "--checkpoints.every=37",
    "--model.dropout=0.2", "--model.label_smoothing=0.1", "--data.flip=true", "--data.shift=2",
    "--snapshots.last=2", "--trainer.enable_progress_bar=false",
]  # fmt: skip
"""37 updates an epoch, and a checkpoint at every epoch's last batch: the hardest place."""
SEARCH = ["search", *TINY, "--output=out"]
REPORT = [
    "report", "--data.source=synthetic", "--data.limit=200", "--schedule.step_size=1",
    "--report.seeds=[0,1]", "--report.runs=runs", "--output=docs",
    "--search.number=2", "--search.stages=1", "--search.seeds=[0]",
]  # fmt: skip
"""Twelve trainings, two searches, twelve pictures: a chain of it takes as long as five others."""
COMMANDS = [FIT, SEARCH, FIT, SEARCH, FIT, SEARCH, REPORT]
KILLS = {"fit": 3, "search": 3, "report": 8}
"""Of a chain, at least; at most twice as many."""
LONGEST = {"fit": 0.5, "search": 0.5, "report": 0.15}
"""Until a kill, as a share of an undisturbed run: a chain that gets far at once has few kills."""


def kind_of(command):
    return command[0]


def run_of(folder):
    """The run that a training, maybe after starts that left no checkpoint, ended in."""
    (last,) = folder.glob("lightning_logs/fit/*/checkpoints/last.ckpt")
    return last.parents[1]


def digest_fit(folder):
    """Everything a training leaves, as text that can be compared."""
    run = run_of(folder)
    return {**_digest_run(run), "leftovers": _leftovers(run)}


def digest_search(folder):
    """Everything a search leaves."""
    return {**_digest_search(folder / "out"), "leftovers": _leftovers(folder / "out")}


def digest_report(folder):
    """Everything a report leaves: its page and pictures, and every run."""
    docs = folder / "docs"
    digest = {"report.md": (docs / "report.md").read_text(), "leftovers": _leftovers(folder)}
    digest |= {f"bits of {path.name}": _bits(path.read_bytes()) for path in docs.glob("*.png")}
    for run in sorted(path for path in (folder / "runs").iterdir() if path.is_dir()):
        parts = _digest_search(run) if run.name.startswith("search-") else _digest_run(run)
        digest |= {f"{run.name}: {name}": part for name, part in parts.items()}
    return digest


def _digest_search(out):
    from tests.study.tiny import read_database

    database = read_database(f"sqlite:///{out / 'search.db'}")  # asserts that none is there twice
    (final,) = out.glob("final-*")
    return {
        "database": repr(sorted(database.items())),
        "search.csv": (out / "search.csv").read_text(),
        "best.yaml": (out / "best.yaml").read_text(),
        "bits of curves.png": _bits((final / "curves.png").read_bytes()),  # fit's has its version
        **_digest_run(final),
    }


def _digest_run(run):
    from onelayer.training.checkpoint import read_checkpoint
    from tests.support.events import points_of

    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    summary = json.loads((run / "summary.json").read_text())
    del summary["seconds"]
    return {
        **{
            f"bits of {name}": _bits(value.numpy().tobytes())
            for name, value in checkpoint["state_dict"].items()
        },
        **{
            f"bits of {name} in {path.name}": _bits(value.numpy().tobytes())
            for path in (run / "checkpoints").glob("cycle_*.ckpt")
            for name, value in read_checkpoint(path)["state_dict"].items()
        },
        "updates": str(checkpoint["global_step"]),
        "curves.csv": (run / "curves.csv").read_text(),
        "summary.json": json.dumps(summary),
        **{f"TensorBoard {tag}": repr(points) for tag, points in points_of(run).items()},
    }


def _bits(content):
    return hashlib.sha256(content).hexdigest()


def _leftovers(folder):
    return " ".join(sorted(str(p.relative_to(folder)) for p in folder.rglob("*.tmp")))


def aside(function, *arguments):
    """What a function returns, called in a child: this process must not compute (see killing)."""
    reader, writer = os.pipe()

    def call():
        with os.fdopen(writer, "w") as pipe:
            json.dump(function(*arguments), pipe)
        return 0

    child = fork(call)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def finished(folder):
    """What a report has finished, with the seconds it took: trained again, it would differ."""
    paths = [*folder.glob("runs/*/result.json"), *folder.glob("runs/*/final-*/summary.json")]
    texts = {str(path.relative_to(folder)): path.read_text() for path in paths}
    return {path: text for path, text in texts.items() if '"test"' in text}  # not yet before it


def unreadable(folder):
    """Checkpoints under the names that count which do not load."""
    from onelayer.core.errors import InputError
    from onelayer.training.checkpoint import read_checkpoint

    bad = []
    for path in [*folder.rglob("last.ckpt"), *folder.rglob("previous.ckpt")]:
        try:
            read_checkpoint(path)
        except InputError as error:
            bad.append(str(error))
    return bad


class Soak:
    """Counts what happened over all chains."""

    def __init__(self, folder, rng, say=print):
        self.folder, self.rng, self.say = folder, rng, say
        self.counts = Counter()
        self.faults = []
        self.expected, self.seconds = {}, {}

    def undisturbed(self, command):
        """The outcome of a command that nobody kills, and how long it takes."""
        kind = kind_of(command)
        folder = self.folder / f"undisturbed-{kind}"
        folder.mkdir()
        start = time.monotonic()
        with chdir(folder), quiet(folder):
            assert attempt(command) == 0, (folder / "output").read_text()
        self.seconds[kind] = time.monotonic() - start
        self.expected[kind] = aside(DIGESTS[kind], folder)

    def chain(self, command, number):
        """One run, killed at least ``KILLS`` times unless it ends before."""
        kind = kind_of(command)
        if kind not in self.expected:
            self.undisturbed(command)
        folder = self.folder / f"{kind}-{number}"
        folder.mkdir()
        other = other_filesystem(self.folder) if number % 3 == 1 else None
        with tempfile.TemporaryDirectory(dir=other) as temporary, chdir(folder), quiet(folder):
            os.environ["TMPDIR"] = temporary
            hits = self._kill_again_and_again(command, folder)
            done = finished(folder)
            code = attempt(self._again(command, folder))
            del os.environ["TMPDIR"]
        self.counts[f"{kind} chains"] += 1
        self.counts[f"{kind} kills"] += hits
        self.counts["chains with TMPDIR elsewhere"] += other is not None
        if code:
            output = (folder / "output").read_text()[-2000:]
            self.faults.append(f"{folder.name}: exit code {code}\n{output}")
            return
        self._compare(done, folder)
        outcome = aside(DIGESTS[kind], folder) or {"outcome": "unreadable"}
        for name in sorted({*outcome, *self.expected[kind]}):
            if outcome.get(name) != self.expected[kind].get(name):
                self.faults.append(f"{folder.name}: {name} differs")

    def _kill_again_and_again(self, command, folder):
        hits, kind, done = 0, kind_of(command), {}
        for _ in range(self.rng.randint(KILLS[kind], 2 * KILLS[kind])):
            seconds = self.rng.uniform(0.02, LONGEST[kind] * self.seconds[kind])
            fit = kind == "fit"
            signum = signal.SIGTERM if fit and self.rng.random() < 0.2 else signal.SIGKILL
            code = attempt(self._again(command, folder), seconds, signum)
            hit = code in (-signum, 128 + signum)
            hits += hit
            self.counts[f"{signal.Signals(signum).name}"] += hit
            if not hit and code:
                output = (folder / "output").read_text()[-2000:]
                self.faults.append(f"{folder.name}: exit code {code}, not killed\n{output}")
            for fault in aside(unreadable, folder):
                self.faults.append(f"{folder.name}: {fault}")
            self._compare(done, folder)
            done = finished(folder)
        return hits

    def _compare(self, done, folder):
        now = finished(folder)
        changed = [name for name in done if now.get(name) != done[name]]
        self.faults += [f"{folder.name}: {name} was finished, and changed" for name in changed]

    def _again(self, command, folder):
        """The command, or the one that goes on."""
        resumable = any(folder.glob("lightning_logs/fit/*/checkpoints/last.ckpt"))
        return [*command, "--ckpt_path=last"] if resumable else command

    def report(self):
        """The figures, as lines."""
        kills = sum(n for name, n in self.counts.items() if name.endswith("kills"))
        lines = [f"{name}: {n}" for name, n in sorted(self.counts.items())]
        return [*lines, f"kills in all: {kills}", f"faults: {len(self.faults)}", *self.faults]


DIGESTS = {"fit": digest_fit, "search": digest_search, "report": digest_report}


def other_filesystem(folder):
    """A writable folder on another filesystem, or None."""
    for candidate in ("/dev/shm", "/run", "/var/tmp", str(Path.home())):
        path = Path(candidate)
        if not path.is_dir() or not os.access(path, os.W_OK):
            continue
        if path.stat().st_dev != folder.stat().st_dev:
            return candidate
    return None


class quiet:  # noqa: N801 - a context manager, named as it reads
    """Sends what children print to a file."""

    def __init__(self, folder):
        self.path = folder / "output"

    def __enter__(self):
        sys.stdout.flush()
        self.kept = os.dup(1), os.dup(2)
        with self.path.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

    def __exit__(self, *_):
        for descriptor, kept in zip((1, 2), self.kept, strict=True):
            os.dup2(kept, descriptor)
            os.close(kept)


def main(words=None):
    """Run chains until the time is over or enough kills have hit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--chains", type=int, default=10**9, help="at most so many chains")
    parser.add_argument("--only", choices=sorted(DIGESTS), help="one kind of chain alone")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; random by default")
    args = parser.parse_args(words)
    seed = random.randrange(10**6) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    load_everything()
    commands = [c for c in COMMANDS if args.only in (None, kind_of(c))]
    end = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), random.Random(seed))
        number = 0
        while number < args.chains and (number == 0 or time.monotonic() < end):
            soak.chain(commands[number % len(commands)], number)
            number += 1
            print(soak.counts, soak.faults[-3:], file=sys.stderr, flush=True)
    print("\n".join(soak.report()))
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())

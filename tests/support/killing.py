"""Runs onelayer commands in children that are killed at given moments.

As a program: ``python -m tests.support.killing JOB.json``. It imports everything once and forks a
child per attempt, so that an attempt costs no imports. The job: {"command": argv, "kills":
[seconds, ...]}. After the kills an attempt is left alone; its exit code is this program's. Prints
how many kills hit a live run.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def run_killed(folder, command, kills, timeout=300, env=None):
    """Run a command in ``folder`` with kills after the given seconds; how many hit a live run."""
    path = Path(folder) / "job.json"
    path.write_text(json.dumps({"command": command, "kills": kills}))
    ours = f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"  # of this checkout, and tests
    environment = {**os.environ, "PYTHONPATH": ours, **(env or {})}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killing", str(path)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.strip().splitlines()[-1])


def load_everything():
    """Import what any command needs. What forks later must not have computed with torch yet:
    OpenMP's threads do not survive a fork."""
    from onelayer._compat import ensure_torchvision_operators

    ensure_torchvision_operators()
    import onelayer.cli
    import onelayer.study.report  # noqa: F401


def fork(function):
    """Call a function in a child, whose exit code is what it returns; the child's id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def attempt(command, seconds=None, signum=signal.SIGKILL, after=None):
    """Run a command, and after so many seconds send it a signal, but not before the file ``after``
    is there, if one is named; the exit code, negative for one that a signal ended."""
    from onelayer.__main__ import main

    child = fork(lambda: main(command))
    end = time.monotonic() + (seconds if seconds is not None else float("inf"))
    while time.monotonic() < end or not (after is None or after.is_file()):
        finished, status = os.waitpid(child, 0 if seconds is None else os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signum)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(path):
    load_everything()
    job = json.loads(Path(path).read_text())
    killed = 0
    for seconds in job["kills"]:
        code = attempt(job["command"], seconds)
        killed += code == -signal.SIGKILL
        if code > 0:  # not killed, and failed: that is what the caller wants to know
            sys.exit(code)
    code = attempt(job["command"])
    print(killed)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1])

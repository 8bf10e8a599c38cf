"""Runs onelayer commands in children that are killed with SIGKILL at given moments.

As a program: ``python -m tests.killing JOB.json``. It imports everything once and forks a child per
attempt, so that an attempt costs no imports. The job: {"first": argv, "again": argv, "kills":
[seconds, ...], "until": path or null}. "again" is used once the path exists. After the kills an
attempt is left alone; its exit code is this program's. Prints the attempts that were killed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def run_killed(folder, first, again=None, kills=(), until=None, timeout=300, env=None):
    """Run a command in ``folder`` with kills after the given seconds; how many hit a live run."""
    job = {
        "first": first,
        "again": again or first,
        "kills": list(kills),
        "until": str(until) if until else None,
    }
    path = Path(folder) / "job.json"
    path.write_text(json.dumps(job))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})}  # for tests
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", str(path)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.strip().splitlines()[-1])


def main(path):
    from onelayer._compat import ensure_torchvision_operators

    ensure_torchvision_operators()
    import onelayer.cli
    import onelayer.study.tuning  # noqa: F401
    from onelayer.__main__ import main as onelayer_main

    job = json.loads(Path(path).read_text())

    def start():
        resumed = job["until"] is None or any(Path().glob(job["until"]))
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            code = onelayer_main(job["again" if resumed else "first"])
        finally:
            os._exit(code)

    killed = 0
    for seconds in job["kills"]:
        child, end = start(), time.monotonic() + seconds
        while time.monotonic() < end:
            finished, status = os.waitpid(child, os.WNOHANG)
            if finished:
                break
            time.sleep(0.002)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
            continue
        if status:  # not killed, and failed: that is what the caller wants to know
            sys.exit(os.waitstatus_to_exitcode(status))
    _, status = os.waitpid(start(), 0)
    print(killed)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1])

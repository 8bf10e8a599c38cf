"""Runs onelayer commands in children that are killed at given moments.

A process that has imported everything, and computed nothing, forks a child per attempt, so that an
attempt costs no imports.
"""

import os
import signal
import sys
import time
import traceback


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


def run_killed(command, kills):
    """Run a command with kills after these seconds, then to its end; return its exit code.

    Prints how many kills hit a live run.
    """
    killed = 0
    for seconds in kills:
        code = attempt(command, seconds)
        killed += code == -signal.SIGKILL
        if code > 0:  # it failed before the kill
            return code
    code = attempt(command)
    print(killed)
    return code

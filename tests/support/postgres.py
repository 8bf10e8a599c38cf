"""A PostgreSQL server of the tests' own, reached through a socket that only they can open."""

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

USER = "onelayer"


def find_program(name):
    """A server program: on PATH, or where Debian puts it, the newest first."""
    installed = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    newest = sorted(installed, key=lambda path: float(path.parts[-3]), reverse=True)
    return shutil.which(name) or next(map(str, newest), None)


class Server:
    """A running server; as a context manager it is stopped and removed at the end."""

    @staticmethod
    def missing():
        """Why there can be none; None if there can."""
        for name in ("initdb", "postgres"):
            if find_program(name) is None:
                return f"no PostgreSQL server to start: {name} was not found"
        if importlib.util.find_spec("psycopg") is None:
            return "no driver for PostgreSQL: pip install 'onelayer[postgres]'"
        return None

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="onelayer-postgres-"))
        self.process = None
        self.numbers = itertools.count()
        # PostgreSQL refuses to run as root.
        self.owner = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self.owner = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        data = str(self.folder / "data")
        subprocess.run(
            [find_program("initdb"), "-D", data, "-U", USER, "--auth=trust", "--no-sync",
             "--encoding=UTF8", "--locale=C"],
            cwd=self.folder, check=True, capture_output=True, timeout=120, **self.owner,
        )  # fmt: skip
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [find_program("postgres"), "-D", data, "-k", str(self.folder),
                 "-c", "listen_addresses=", "-c", "fsync=off"],
                cwd=self.folder, stdout=log, stderr=log, **self.owner,
            )  # fmt: skip
        end = time.monotonic() + 60
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)

    def _answers(self):
        import psycopg

        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def execute(self, statement):
        import psycopg

        with psycopg.connect(
            host=str(self.folder), user=USER, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement)

    def create_database(self, options=""):
        """URL of a new database."""
        name = f"database{next(self.numbers)}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return f"postgresql+psycopg://{USER}@/{name}?host={self.folder}"

    def stop(self):
        """End it at once; what is connected loses its connection."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(60)

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

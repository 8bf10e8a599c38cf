"""A server on loopback that is healthy, or is not, in many ways."""

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

FAST = {"SILENCE": 0.5, "WINDOW": 0.3}  # seconds


class Server(ThreadingHTTPServer):
    """Answers according to the first part of the path, until it is stopped."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, archive):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive = archive
        self.asked: list[tuple[str, int]] = []  # which kind, from which byte on
        self.stopped = threading.Event()

    def url(self, kind):
        return f"http://127.0.0.1:{self.server_port}/{kind}"

    def handle_error(self, request, address):
        pass  # clients that go away


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        kind = self.path.split("/")[1]
        begin = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0])
        self.server.asked.append((kind, begin))
        getattr(self, kind)(self.server.archive, begin)

    def log_message(self, *_):
        pass

    def begin(self, begin, size):
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - begin))
        self.end_headers()

    def healthy(self, archive, begin):
        self.begin(begin, len(archive))
        self.wfile.write(archive[begin:])

    def no_ranges(self, archive, begin):
        self.healthy(archive, 0)

    def other_range(self, archive, begin):
        self.healthy(archive, begin and begin - 1)

    def moved(self, archive, begin):
        self.send_response(302)
        self.send_header("Location", self.path.replace("moved", "healthy"))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def silent(self, archive, begin):
        self.server.stopped.wait()

    def stops(self, archive, begin):
        self.begin(begin, len(archive))
        self.wfile.write(archive[begin : len(archive) // 2])
        self.wfile.flush()
        self.server.stopped.wait()

    def drips(self, archive, begin):
        self.pour(archive, begin, 1)

    def throttled(self, archive, begin):
        self.pour(archive, begin, 1000)

    def pour(self, archive, begin, step):
        """Send that many bytes every 20 ms."""
        self.begin(begin, len(archive))
        for position in range(begin, len(archive), step):
            self.wfile.write(archive[position : position + step])
            self.wfile.flush()
            if self.server.stopped.wait(0.02):
                break

    def short(self, archive, begin):
        self.begin(begin, len(archive))
        self.wfile.write(archive[begin:-100])

    def busy(self, archive, begin):
        self.send_error(503)

    def altered(self, archive, begin):
        self.healthy(archive[:-1] + b"!", begin)

    def page(self, archive, begin):
        self.no_ranges(b"<html>Please log in to the network.</html>", 0)

    def endless(self, archive, begin):
        self.send_response(200)
        self.end_headers()
        while not self.server.stopped.is_set():
            self.wfile.write(bytes(2**16))


@contextmanager
def serving(tiny):
    """A server of the archive, until the end of the context."""
    with Server(tiny.archive) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.stopped.set()
        server.shutdown()
        thread.join()

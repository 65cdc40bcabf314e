"""The floor of a client: what its own code needs when the service takes no time at all.

A server of its own process passes each kind of request on once, keeps the answer and gives it to
every later one at once. What the official SDK then needs for create and first command is its own.
"""

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any, ClassVar
from urllib.parse import urlsplit

from alcove.cli.bench.series import Series, expect, milliseconds
from alcove.cli.bench.workbench import MARK, Workbench

NAME = "floor: the client alone"
WORD = "alone"
REST_S = 0.2
_LIMIT_S = 60.0
_OF_THE_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host", "date"})


def client_alone(bench: Workbench, runs: int) -> list[Series]:
    """Create to the first command's output by the SDK, all answers given without delay."""
    from e2b import Sandbox

    series = Series(NAME, "ms", note="create to first command, every answer from a recording")
    installation = bench.installation
    with _recording(installation.api_url, installation.sandbox_url) as url:
        for turn in range(runs + 1):
            timed = series if turn else Series("recorded", "ms")
            time.sleep(REST_S)
            with milliseconds(timed):
                sandbox: Any = Sandbox.create(metadata=MARK, api_url=url, sandbox_url=url)
                expect("echo", sandbox.commands.run(f"echo {WORD}").stdout, f"{WORD}\n")
            if turn:
                continue
            expect("failures of the recording", timed.failures, [])
            expect("kill", sandbox.kill(), wanted=True)
    return [series]


@contextlib.contextmanager
def _recording(api_url: str, sandbox_url: str) -> Iterator[str]:
    """The address of a server that records both and repeats them."""
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe()
    server = processes.Process(target=_serve, args=(there, api_url, sandbox_url), daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        server.terminate()
        server.join()


def _serve(told: Connection, api_url: str, sandbox_url: str) -> None:
    class Recorder(_Recorder):
        upstreams = (api_url, sandbox_url)
        known: ClassVar[dict[tuple[str, str], _Answer]] = {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    server.daemon_threads = True
    told.send(server.server_address[1])
    server.serve_forever()


_Answer = tuple[int, list[tuple[str, str]], bytes]


class _Recorder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    upstreams: ClassVar[tuple[str, str]]
    known: ClassVar[dict[tuple[str, str], _Answer]]

    def do_POST(self) -> None:
        content = self._content()
        kind = self.command, urlsplit(self.path).path
        if kind not in self.known:
            self.known[kind] = self._ask(content)
        status, headers, body = self.known[kind]
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_DELETE(self) -> None:
        self.do_POST()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Nothing: the bench prints figures only."""

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _ask(self, content: bytes) -> _Answer:
        api_url, sandbox_url = self.upstreams
        to_sandbox = self.headers.get("E2b-Sandbox-Id") is not None
        upstream = urlsplit(sandbox_url if to_sandbox else api_url)
        assert upstream.hostname is not None
        connection = HTTPConnection(upstream.hostname, upstream.port, timeout=_LIMIT_S)
        try:
            connection.request(self.command, self.path, content, _passed_on(self.headers.items()))
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        return answer.status, list(_passed_on(answer.getheaders()).items()), body


def _passed_on(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in _OF_THE_HOP}

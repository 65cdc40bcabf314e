"""Answers that take their time: events one by one, clients that leave, many requests at once."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from e2b import Sandbox

from stack import Stack

PORT = 8900
AT_ONCE = 200
# Each route waits for another request or for the client, never for the clock.
SERVER = f"""
import http.server
import threading

released, gone = threading.Event(), threading.Event()
all_here = threading.Barrier({AT_ONCE})

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        getattr(self, "get_" + self.path.strip("/"))()

    def get_events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(3):
            self.wfile.write(f"id: {{number}}\\ndata: event {{number}}\\n\\n".encode())
            released.wait()
            released.clear()

    def get_release(self):
        released.set()
        self.answer("released")

    def get_hang(self):
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\n\\r\\nbegun\\n")
        try:
            self.connection.recv(1)  # the client has nothing more to say: this is its end
        except ConnectionResetError:
            pass
        gone.set()
        self.close_connection = True

    def get_gone(self):
        self.answer(str(gone.wait(10)))

    def get_together(self):
        all_here.wait(60)
        self.answer("together")

    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = {AT_ONCE}

Server(("0.0.0.0", {PORT}), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def served(shared: Sandbox) -> Sandbox:
    shared.files.write("/home/user/streams.py", SERVER)
    shared.commands.run("python3 streams.py", background=True, timeout=0)
    shared.commands.run(
        f"until (exec 3<>/dev/tcp/127.0.0.1/{PORT}) 2>/dev/null; do sleep 0.05; done"
    )
    return shared


@pytest.fixture
def client(served: Sandbox, stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.sandbox_url, headers=routing(served), timeout=30) as opened:
        yield opened


def routing(sandbox: Sandbox) -> dict[str, str]:
    return {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(PORT)}


def test_server_sent_events_arrive_as_they_are_sent(client: httpx.Client) -> None:
    with client.stream("GET", "/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        lines = (line for line in answer.iter_lines() if line)
        for number in range(3):
            # The server sends no further event until it is told to: this one was not held back.
            assert [next(lines), next(lines)] == [f"id: {number}", f"data: event {number}"]
            assert client.get("/release").text == "released"
        assert list(lines) == []


def test_a_client_that_leaves_is_noticed_inside_at_once(client: httpx.Client) -> None:
    with client.stream("GET", "/hang") as answer:
        assert next(answer.iter_lines()) == "begun"
    assert client.get("/gone").text == "True"


def test_many_requests_at_once(served: Sandbox, stack: Stack) -> None:
    """The server answers none of them before it has all of them."""

    async def ask_all() -> list[str]:
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with httpx.AsyncClient(
            base_url=stack.sandbox_url, headers=routing(served), limits=limits, timeout=90
        ) as client:
            asked = [client.get("/together") for _ in range(AT_ONCE)]
            return [answer.text for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask_all()) == ["together"] * AT_ONCE

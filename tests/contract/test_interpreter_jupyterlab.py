"""JupyterLab in a sandbox, reached through its port as a browser does: page, API and kernel."""

import json
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from e2b_code_interpreter import Sandbox
from websockets.sync.client import connect

from stack import Stack

pytestmark = pytest.mark.timeout(900)

TOKEN = "a token of this test"
_START_S = 180
_RUN_S = 120


class Lab:
    def __init__(self, stack: Stack, sandbox: Sandbox) -> None:
        self.host = sandbox.get_host(8888)
        edge = urlsplit(stack.sandbox_url)
        self._edge = (edge.hostname, edge.port)
        self.http = httpx.Client(
            base_url=stack.sandbox_url, headers={"Host": self.host}, timeout=60
        )

    def get(self, path: str, token: str = TOKEN) -> httpx.Response:
        # A cookie of an earlier answer would open the door as well.
        self.http.cookies.clear()
        return self.http.get(path, headers={"Authorization": f"token {token}"})

    def run(self, kernel: str, code: str) -> str:
        """Standard output of a cell, over the WebSocket that a notebook uses."""
        started = self.http.post(
            "/api/kernels", json={"name": kernel}, headers={"Authorization": f"token {TOKEN}"}
        )
        assert started.status_code == 201, started.text
        session = uuid.uuid4().hex
        path = f"/api/kernels/{started.json()['id']}/channels?session_id={session}"
        with connect(
            f"ws://{self.host}{path}",
            sock=socket.create_connection(self._edge),
            additional_headers={"Authorization": f"token {TOKEN}"},
            origin=f"http://{self.host}",  # type: ignore[arg-type]  # any text will do
            max_size=None,
        ) as channels:
            channels.send(json.dumps(_execute_request(code, session)))
            return _output(channels)


def _execute_request(code: str, session: str) -> dict[str, Any]:
    return {
        "channel": "shell",
        "header": {
            "msg_id": "cell",
            "msg_type": "execute_request",
            "username": "",
            "session": session,
            "date": "2026-01-01T00:00:00Z",
            "version": "5.3",
        },
        "parent_header": {},
        "metadata": {},
        "content": {"code": code, "silent": False, "store_history": True, "allow_stdin": False},
    }


def _output(socket: Any) -> str:
    text = ""
    until = time.monotonic() + _RUN_S
    while True:
        message = json.loads(socket.recv(timeout=until - time.monotonic()))
        if (message.get("parent_header") or {}).get("msg_id") != "cell":
            continue
        if message["msg_type"] == "stream":
            text += message["content"]["text"]
        if message["content"].get("execution_state") == "idle":
            return text


@pytest.fixture(scope="module")
def lab(stack: Stack, interpreter: str) -> Iterator[Lab]:
    sandbox = Sandbox.create(interpreter, timeout=1800)
    sandbox.commands.run(f"start-jupyterlab --token '{TOKEN}'", background=True, timeout=0)
    lab = Lab(stack, sandbox)
    until = time.monotonic() + _START_S
    while lab.get("/api/status").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.5)
    yield lab
    sandbox.kill()


def test_its_page_is_served_to_who_knows_the_token(lab: Lab) -> None:
    page = lab.get("/lab")
    assert page.status_code == 200
    assert "<title>JupyterLab</title>" in page.text
    assert lab.get("/api/status", token="guessed").status_code == 403
    assert lab.http.get("/api/kernels").status_code == 403


def test_it_offers_the_kernels_of_the_template(lab: Lab) -> None:
    specs = lab.get("/api/kernelspecs").json()["kernelspecs"]
    assert {"python3", "javascript", "typescript", "bash", "ir", "java"} <= specs.keys()


@pytest.mark.parametrize(
    ("kernel", "code", "output"),
    [
        (
            "python3",
            "import pandas, os; print(len(pandas.DataFrame({'a': [1, 2]})), os.getcwd())",
            "2 /home/user\n",
        ),
        ("javascript", "console.log(await Promise.resolve(6 * 7))", "42\n"),
        ("bash", "whoami", "user\n"),
    ],
)
def test_a_kernel_runs_code_over_its_websocket(
    lab: Lab, kernel: str, code: str, output: str
) -> None:
    assert lab.run(kernel, code) == output

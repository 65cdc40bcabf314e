"""What a soak keeps inside its sandboxes, and how it looks whether that is still right.

With gVisor a program holds random memory and a random file and changes parts of both; it gives
their checksums. The fake driver's guest has an environment that only it and its snapshots know.
"""

import json
import secrets
import time
from dataclasses import dataclass
from typing import Protocol

import httpx
from e2b import Sandbox

from stack import Stack

AGENT_PORT, KEEPER_PORT = 49983, 8000
PATIENCE_S = 60.0
KEEPER = """
import hashlib, http.server, json, os
memory = bytearray(os.urandom(4 << 20))
path = "/home/user/keeper.bin"
if not os.path.exists(path):
    with open(path, "wb") as file:
        file.write(os.urandom(1 << 20))

def told():
    with open(path, "rb") as file:
        return {"memory": hashlib.sha256(memory).hexdigest(),
                "file": hashlib.sha256(file.read()).hexdigest()}

def change():
    at = int.from_bytes(os.urandom(4), "big") % (len(memory) - 65536)
    memory[at:at + 65536] = os.urandom(65536)
    with open(path, "r+b") as file:
        file.seek(at % (1 << 19))
        file.write(os.urandom(65536))

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_):
        pass
    def answer(self):
        body = json.dumps(told()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer()
    def do_POST(self):
        change()
        self.answer()

http.server.HTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


class UnreachableError(Exception):
    """The guest did not answer in PATIENCE_S."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Checksums of what a guest holds."""

    memory: str
    file: str


class Guest(Protocol):
    def create_fields(self) -> dict[str, object]:
        """What a create request says so that the guest has something to keep."""

    def install(self, sandbox_id: str) -> Contents:
        """Make the guest hold something; also after a reboot, when only its file is left."""

    def look(self, sandbox_id: str) -> Contents:
        """What it holds now. Raises UnreachableError."""

    def change(self, sandbox_id: str) -> Contents:
        """Let it hold something else."""


class GvisorGuest:
    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def create_fields(self) -> dict[str, object]:
        return {}

    def install(self, sandbox_id: str) -> Contents:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                sandbox = Sandbox.connect(sandbox_id, timeout=600)
                sandbox.files.write("/home/user/keeper.py", KEEPER)
                sandbox.commands.run("python3 /home/user/keeper.py", background=True, timeout=0)
                break
            except Exception as error:  # services may be starting again
                if time.monotonic() > deadline:
                    raise UnreachableError(f"{sandbox_id}: {error!r}") from error
                time.sleep(0.2)
        return self.look(sandbox_id)

    def look(self, sandbox_id: str) -> Contents:
        return Contents(**ask(self._stack, sandbox_id, KEEPER_PORT, "/").json())

    def change(self, sandbox_id: str) -> Contents:
        told = ask(self._stack, sandbox_id, KEEPER_PORT, "/", method="POST").json()
        return Contents(**told)


class FakeGuest:
    """Keeps one environment variable of its create request, which nobody else writes down."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def create_fields(self) -> dict[str, object]:
        return {"envVars": {"KEPT": secrets.token_hex(16)}}

    def install(self, sandbox_id: str) -> Contents:
        return self.look(sandbox_id)

    def look(self, sandbox_id: str) -> Contents:
        token = {"X-Access-Token": self._token(sandbox_id)}
        told = ask(self._stack, sandbox_id, AGENT_PORT, "/envs", headers=token).json()
        return Contents(told["KEPT"], told["KEPT"])

    def change(self, sandbox_id: str) -> Contents:
        return self.look(sandbox_id)

    def _token(self, sandbox_id: str) -> str:
        url, key = f"{self._stack.api_url}/sandboxes/{sandbox_id}", self._stack.api_key
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                detail = httpx.get(url, headers={"X-API-KEY": key}, timeout=20)
                return str(detail.raise_for_status().json()["envdAccessToken"])
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise UnreachableError(f"{sandbox_id}: {error!r}") from error
                time.sleep(0.1)


def ask(
    stack: Stack,
    sandbox_id: str,
    port: int,
    path: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """A request through the edge, again until it answers: services may be starting again.

    One that changes something may so be done twice; the last answer is right all the same, as the
    keeper answers one request after the other.
    """
    where = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port)} | (headers or {})
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = httpx.request(method, f"{stack.sandbox_url}{path}", headers=where, timeout=20)
        except httpx.HTTPError as error:
            said = repr(error)
        else:
            if answer.status_code == 200:
                return answer
            said = f"{answer.status_code} {json.dumps(answer.text[:200])}"
        if time.monotonic() > deadline:
            raise UnreachableError(f"{sandbox_id} port {port}: {said}")
        time.sleep(0.1)

"""A real guest agent in a process of its own, and a client that speaks to it in raw HTTP."""

import base64
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, Any]
TIMEOUT_S = 30


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Ended:
    """What a command's stream said."""

    pid: int = 0
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    pty: bytearray = field(default_factory=bytearray)
    end: Message | None = None
    error: Message | None = None
    keepalives: int = 0
    kinds: list[str] = field(default_factory=list)


class Stream:
    """An open server stream; read its envelopes with `next`."""

    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        self._connection = connection
        self._response = response
        self.result = Ended()

    def next(self) -> tuple[int, Message] | None:
        head = self._response.read(5)
        if len(head) < 5:
            return None
        payload = self._response.read(int.from_bytes(head[1:], "big"))
        message = json.loads(payload)
        self._note(head[0], message)
        return head[0], message

    def rest(self) -> Ended:
        while self.next() is not None:
            pass
        self.close()
        return self.result

    def until_stdout(self, text: bytes) -> None:
        while text not in self.result.stdout and text not in self.result.pty:
            assert self.next() is not None, f"the stream ended before {text!r}"

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def _note(self, flags: int, message: Message) -> None:
        result = self.result
        if flags & 2:
            result.error = message.get("error")
            return
        ((kind, value),) = message["event"].items()
        result.kinds.append(kind)
        match kind:
            case "start":
                result.pid = value["pid"]
            case "data":
                for name, data in value.items():
                    getattr(result, name).extend(base64.b64decode(data))
            case "end":
                result.end = value
            case "keepalive":
                result.keepalives += 1


@dataclass
class Agent:
    process: "subprocess.Popen[str]"
    port: int
    root: Path

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)

    def init(self, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        return self.request("POST", "/init", json.dumps(fields).encode(), headers)

    def unary(self, method: str, message: Message, **headers: str) -> Answer:
        named = {"content-type": "application/json"} | _dashed(headers)
        path = f"/process.Process/{method}"
        return self.request("POST", path, json.dumps(message).encode(), named)

    def stream(self, method: str, *messages: Message, **headers: str) -> Stream:
        body = b"".join(envelope(json.dumps(message).encode()) for message in messages)
        named = {"content-type": "application/connect+json"} | _dashed(headers)
        connection = self.connect()
        connection.request("POST", f"/process.Process/{method}", body, named)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return Stream(connection, response)

    def start(self, *argv: str, headers: dict[str, str] | None = None, **more: Any) -> Stream:
        """Open a Start stream; `cwd` and `envs` go into the config, the rest beside it."""
        config: Message = {"cmd": argv[0], "args": list(argv[1:])}
        config |= {name: more.pop(name) for name in ("cwd", "envs") if name in more}
        message = {"process": config, "stdin": False} | more
        return self.stream("Start", message, **(headers or {}))

    def run(self, script: str, **more: Any) -> Ended:
        return self.start("/bin/sh", "-c", script, **more).rest()


@contextlib.contextmanager
def running_agent(root: Path) -> Iterator[Agent]:
    environment = os.environ | {
        "ALCOVE_GUEST_HOST": "127.0.0.1",
        "ALCOVE_GUEST_PORT": "0",
        "ALCOVE_GUEST_ROOT": str(root),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "alcove.guest"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield Agent(process, int(line.rpartition(":")[2]), root)
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)
        process.stdout.close()


def envelope(payload: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(payload).to_bytes(4, "big") + payload


def basic(name: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{name}:".encode()).decode()}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}

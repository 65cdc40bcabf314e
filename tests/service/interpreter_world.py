"""The code interpreter's server as a process, with real kernels, and an agent with variables."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

IMAGE = Path(__file__).parents[2] / "src" / "alcove" / "images" / "code_interpreter"
PATIENCE_S = 90.0


@dataclass
class Execution:
    lines: list[dict[str, Any]]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] == kind]

    @property
    def stdout(self) -> str:
        return "".join(line["text"] for line in self.all("stdout"))

    @property
    def stderr(self) -> str:
        return "".join(line["text"] for line in self.all("stderr"))

    @property
    def text(self) -> str | None:
        return next((r.get("text") for r in self.all("result") if r["is_main_result"]), None)

    @property
    def error(self) -> dict[str, Any] | None:
        return next(iter(self.all("error")), None)

    @property
    def count(self) -> int | None:
        return next((n["execution_count"] for n in self.all("number_of_executions")), None)


@dataclass
class Agent:
    """Answers GET /envs as the sandbox's agent does; `token` None lets everybody in."""

    variables: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    asked: int = 0
    port: int = 0

    @contextlib.contextmanager
    def serving(self) -> Iterator["Agent"]:
        agent = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                agent.asked += 1
                allowed = agent.token in {None, self.headers["X-Access-Token"]}
                body = json.dumps(agent.variables if allowed else {"code": 401}).encode()
                self.send_response(200 if allowed else 401)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        server = _Server(("127.0.0.1", 0), Handler)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """The interpreter closes its connections by a reset."""


class Interpreter:
    """One server and its kernels; `directory` holds everything it writes."""

    def __init__(self, directory: Path, agent: Agent, warm: str = "python") -> None:
        self.directory = directory
        self.run_dir = directory / "run"
        self.workdir = directory / "home"
        self.workdir.mkdir(exist_ok=True)
        self.port = _free_port()
        self._agent = agent
        self._warm = warm
        _install_kernels(directory)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environ = os.environ | {
            "CODE_INTERPRETER_RUN_DIR": str(self.run_dir),
            "CODE_INTERPRETER_WORKDIR": str(self.workdir),
            "CODE_INTERPRETER_ENVD_PORT": str(self._agent.port),
            "CODE_INTERPRETER_WARM": self._warm,
            "JUPYTER_PATH": str(self.directory / "jupyter"),
            "JUPYTER_NO_CONFIG": "1",
            "IPYTHONDIR": str(self.directory / "ipython"),
            "PYTHONPATH": str(self.directory / "python"),
        }
        words = ["-m", "server", "uvicorn", "main:app", "--host", "127.0.0.1"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words, "--port", str(self.port)],
                cwd=IMAGE,
                env=environ,
                stdout=log,
                stderr=log,
            )

    def wait(self) -> None:
        """Until /health is OK."""
        until = time.monotonic() + PATIENCE_S
        answer = None
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                answer = self.request("GET", "/health")
                if answer == (200, '"OK"'):
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready: {answer}; {(self.directory / 'log').read_text()}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(timeout=PATIENCE_S)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes | None) else json.dumps(body)
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()

    def execute(self, code: str, token: str | None = None, **fields: Any) -> Execution:
        headers = {"X-Access-Token": token} if token else {}
        status, text = self.request("POST", "/execute", {"code": code, **fields}, headers)
        assert status == 200, text
        lines = [json.loads(line) for line in text.splitlines()]
        assert lines[-1] == {"type": "end_of_execution"}
        return Execution(lines[:-1])

    def rehearse(self) -> list[dict[str, Any]]:
        """By the unix socket, as the template's warm command does."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(str(self.run_dir.with_suffix(".sock")))
            connection.sendall(b"POST /rehearse HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head
        return [json.loads(line) for line in body.splitlines() if line.startswith(b"{")]

    @contextlib.contextmanager
    def executing(self, code: str, **fields: Any) -> Iterator[Any]:
        """A file of the answer's lines; the client is gone when the block is left."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("POST", "/execute", json.dumps({"code": code, **fields}))
            response = connection.getresponse()
            assert response.status == 200
            yield response
            # close() alone waits for the rest of the answer
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)

    def create_context(self, **fields: Any) -> dict[str, str]:
        status, text = self.request("POST", "/contexts", fields)
        assert status == 200, text
        return json.loads(text)

    def contexts(self) -> list[dict[str, str]]:
        return json.loads(self.request("GET", "/contexts")[1])

    def kernels(self) -> set[int]:
        """Process ids of all kernels that have their connection file here, whoever started them."""
        found = set()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"{self.run_dir}/kernel-" in _command(entry):
                    found.add(int(entry.name))
        return found

    def memory_mib(self) -> float:
        """Most resident memory the server's process has had."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024

    def end_leftovers(self) -> None:
        for pid in self.kernels():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def interpreter(directory: Path, agent: Agent, warm: str = "python") -> Iterator[Interpreter]:
    world = Interpreter(directory, agent, warm)
    world.start()
    try:
        world.wait()
        yield world
    finally:
        world.stop()
        world.end_leftovers()


def eventually(check: Any) -> None:
    until = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.05)


def _command(entry: Path) -> str:
    return (entry / "cmdline").read_bytes().decode(errors="replace")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def _install_kernels(directory: Path) -> None:
    """As the template has them: with our extension."""
    profile = directory / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    shutil.copy(IMAGE / "kernel" / "config" / "ipython_kernel_config.py", profile)
    packages = directory / "python"
    packages.mkdir(exist_ok=True)
    (packages / "alcove_kernel").symlink_to(IMAGE / "kernel")
    for name, module in (("python3", "ipykernel_launcher"), ("bash", "bash_kernel")):
        folder = directory / "jupyter" / "kernels" / name
        folder.mkdir(parents=True)
        spec = {
            "argv": [sys.executable, "-B", "-m", module, "-f", "{connection_file}"],
            "display_name": name,
            "language": name.rstrip("3"),
        }
        (folder / "kernel.json").write_text(json.dumps(spec))

"""Starts echo.js in a network namespace: a real TLS server, of HTTP/1.1 and HTTP/2."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def echo(netns: Path, certificate: Path) -> Iterator[int]:
    """The port it listens on, on all addresses there."""
    script = Path(__file__).with_name("echo.js")
    server = subprocess.Popen(
        ["ip", "netns", "exec", netns.name, "node", str(script), str(certificate)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        yield int(server.stdout.readline())
    finally:
        server.kill()
        server.wait()
        server.stdout.close()

"""What a user feels, measured through the official Python SDK; every answer is checked."""

import functools
import math
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from alcove.cli.bench.series import Series, expect, milliseconds
from alcove.cli.bench.workbench import MARK

HOME = "/home/user"
UPLOAD_BYTES = 100 * 1000 * 1000
BURSTS = (2, 4, 8, 16)
TURN = 10
SPAWN_LOOP = """
import subprocess, time
for _ in range({count}):
    started = time.perf_counter()
    out = subprocess.run(["/bin/bash", "-l", "-c", "echo x"], capture_output=True).stdout
    assert out == b"x\\n"
    print((time.perf_counter() - started) * 1000)
"""


def first_command(runs: int) -> list[Series]:
    """Create to the first command's output, create alone, and kill."""
    from e2b import Sandbox

    tti = Series("tti", "ms", note="create to the output of the first command")
    create = Series("create", "ms")
    kill = Series("kill", "ms")
    for _ in range(runs):
        nonce = secrets.token_hex(8)
        sandbox: Any = None
        with milliseconds(tti):
            with milliseconds(create):
                sandbox = Sandbox.create(metadata=MARK)
            expect("echo", sandbox.commands.run(f"echo {nonce}").stdout, f"{nonce}\n")
        if sandbox is not None:
            with milliseconds(kill):
                expect("kill", sandbox.kill(), wanted=True)
    return [tti, create, kill]


def commands(runs: int) -> list[Series]:
    """A command on a warm connection, and the same spawn by a Python process inside.

    They take turns, so that both meet the same machine.
    """
    from e2b import Sandbox

    outside = Series("exec", "ms", note="commands.run('echo …') on a warm connection")
    inside = Series(
        "floor: spawn inside", "ms", note="bash -l -c 'echo x' by Python in the sandbox"
    )
    with Sandbox.create(metadata=MARK) as sandbox:
        sandbox.files.write(f"{HOME}/spawn.py", SPAWN_LOOP.format(count=TURN))
        for _ in range(math.ceil(runs / TURN)):
            sandbox.commands.run("true")
            for _ in range(TURN):
                nonce = secrets.token_hex(8)
                with milliseconds(outside):
                    expect("echo", sandbox.commands.run(f"echo {nonce}").stdout, f"{nonce}\n")
            printed = sandbox.commands.run(f"python3 {HOME}/spawn.py", timeout=300).stdout
            inside.values.extend(float(line) for line in printed.split())
    return [outside, inside]


def transfers(runs: int) -> list[Series]:
    """100 MB up and down, compared byte for byte."""
    from e2b import Sandbox

    raw = Series("upload 100 MB", "MB/s", note="use_octet_stream=True")
    multipart = Series("upload 100 MB, multipart", "MB/s", note="the SDK's default")
    down = Series("download 100 MB", "MB/s", note="format='bytes'")
    content = os.urandom(UPLOAD_BYTES)
    with Sandbox.create(metadata=MARK) as sandbox:
        for _ in range(runs):
            for series, octets in ((raw, True), (multipart, False)):
                write = functools.partial(
                    sandbox.files.write, f"{HOME}/data", content, use_octet_stream=octets
                )
                _rate(series, write, lambda written: written.path == f"{HOME}/data")
                read = functools.partial(sandbox.files.read, f"{HOME}/data", format="bytes")
                _rate(down, read, lambda received: received == content)
                sandbox.files.remove(f"{HOME}/data")
    return [raw, multipart, down]


def bursts() -> list[Series]:
    """Several creates with a first command each, started at the same moment: wall time of all."""
    return [_burst(count) for count in BURSTS]


def _burst(count: int) -> Series:
    from e2b import Sandbox

    series = Series(f"burst {count}", "ms", note="each: create to first output, all at once")
    start = threading.Barrier(count)
    lock = threading.Lock()

    def one() -> None:
        mine = Series("one", "ms")
        nonce = secrets.token_hex(8)
        sandbox: Any = None
        start.wait()
        with milliseconds(mine):
            sandbox = Sandbox.create(metadata=MARK)
            expect("echo", sandbox.commands.run(f"echo {nonce}").stdout, f"{nonce}\n")
        with lock:
            series.values += mine.values
            series.failures += mine.failures
        if sandbox is not None:
            sandbox.kill()

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return series


def _rate(series: Series, transfer: Callable[[], Any], is_right: Callable[[Any], bool]) -> None:
    """Time a transfer; look at what it gave after that."""
    started = time.perf_counter()
    try:
        result = transfer()
        took_s = time.perf_counter() - started
        expect("the transfer went well", is_right(result), wanted=True)
    except Exception as error:
        series.failures.append(f"{type(error).__name__}: {error}"[:300])
    else:
        series.values.append(UPLOAD_BYTES / 1e6 / took_s)

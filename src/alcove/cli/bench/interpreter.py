"""The code interpreter: how soon a sandbox answers code, and what code costs on its way.

Through the official client; the floors are the same cell by jupyter_client inside the sandbox, and
a raw restore of the template's snapshot with the same cell asked on the sandbox's own address.
"""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from alcove.cli.bench import floor, machine, waking
from alcove.cli.bench.series import Series, expect, milliseconds
from alcove.cli.bench.workbench import LIFE_S, MARK, Workbench
from alcove.node.drivers import runsc
from alcove.node.drivers.driver import Image, Place

RECIPE = "code_interpreter"
PORT = 49999
IDLE_SANDBOXES = 4
_SETTLE_S = 5.0
_TURN = 10
_FLOOR_LIMIT_S = 30.0
_RETRY_S = 0.002
_LINES, _LINE = 1000, "x" * 999
_CHART = """
import matplotlib.pyplot as plt
plt.plot([1, 2, {seed}], [3, 1, 2])
plt.show()
"""
# Run by the interpreter's own Python, which has jupyter_client: one kernel, one cell many times.
_INSIDE = """
import time
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="python3")
try:
    for turn in range({count} + 2):
        started = time.perf_counter()
        asked, answer, idle = client.execute(f"{{turn}}+1"), None, False
        while not idle:
            message = client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") == asked:
                if message["msg_type"] == "execute_result":
                    answer = message["content"]["data"]["text/plain"]
                idle = message["content"].get("execution_state") == "idle"
        client.get_shell_msg(timeout=30)
        took = time.perf_counter() - started
        assert answer == str(turn + 1), answer
        if turn >= 2:
            print(took * 1000)
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""
_PYTHON = "/opt/code-interpreter/venv/bin/python"


def interpreter(bench: Workbench, runs: int) -> list[Series]:
    """Everything there is to measure of the code interpreter."""
    return [
        *_first_run(bench, runs),
        *_raw(bench, max(5, runs // 2)),
        *_warm(runs),
        *_outputs(max(5, runs // 3)),
        _idle_memory(bench),
    ]


def create(**options: Any) -> Any:
    from e2b_code_interpreter import Sandbox

    return Sandbox.create(metadata=MARK, timeout=LIFE_S, **options)


def _first_run(bench: Workbench, runs: int) -> list[Series]:
    """Create to the first answer of code; with rests in which the pool is filled, and without."""
    note = "create to the answer of run_code('n+1')"
    hit = Series("first run_code, warm", "ms", note=f"{note}, pool hits only")
    miss = Series("first run_code, pool missed", "ms", note=f"{note}, misses only")
    alone = Series("create of an interpreter, warm", "ms", note="the same hits without the code")
    for turn in range(2 * runs):
        if turn < runs:
            waking.wait_for_warm(bench)
        first, created = Series("first", "ms"), Series("create", "ms")
        before = waking.warm_taken(bench)
        number = secrets.randbelow(1_000_000)
        sandbox = None
        with milliseconds(first):
            with milliseconds(created):
                sandbox = create()
            expect("run_code", sandbox.run_code(f"{number}+1").text, str(number + 1))
        warm = waking.warm_taken(bench) > before
        (hit if warm else miss).extend(first)
        if warm:
            alone.extend(created)
        if sandbox is not None:
            sandbox.kill()
    return [hit, alone, miss]


def _raw(bench: Workbench, runs: int) -> list[Series]:
    return asyncio.run(_raw_restores(floor.base_image(bench.installation, RECIPE), runs))


async def _raw_restores(image: Image, runs: int) -> list[Series]:
    restore = Series(
        "floor: runsc restore, interpreter", "ms", note="of the same checkpoint, to GET /health"
    )
    answer = Series(
        "floor: runsc restore and 1+1", "ms", note="of the same checkpoint, to the kernel's answer"
    )
    async with floor.prepared_ground() as ground:
        for slot in range(1, runs + 1):
            async with floor.prepared_place(ground, slot, image) as place:
                await floor.timed(restore, floor.restored(place, image))
            async with floor.prepared_place(ground, runs + slot, image) as place:
                await floor.timed(answer, _answered(place, image))
    return [restore, answer]


async def _answered(place: Place, image: Image) -> AsyncIterator[None]:
    """Restore by the command line and run code, straight on the sandbox's address."""
    assert image.snapshot is not None
    await runsc.Runsc("runsc").restore(place, image.snapshot)
    number = secrets.randbelow(1_000_000)
    told = await _execute(place.address, f"{number}+1")
    yield
    texts = [line.get("text") for line in told if line["type"] == "result"]
    expect("1+1", texts, [str(number + 1)])


async def _execute(address: str, code: str) -> list[dict[str, Any]]:
    deadline = time.monotonic() + _FLOOR_LIMIT_S
    while True:
        try:
            reader, writer = await asyncio.open_connection(address, PORT)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_RETRY_S)
    body = json.dumps({"code": code}).encode()
    # HTTP/1.0: the answer comes without chunks and ends with the connection.
    head = (
        f"POST /execute HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    writer.write(head.encode() + b"\r\n\r\n" + body)
    try:
        answer = await reader.read(-1)
    finally:
        writer.close()
    lines = answer.partition(b"\r\n\r\n")[2].splitlines()
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def _warm(runs: int) -> list[Series]:
    """The round trip of a cell on a warm context, in turns with the same inside the sandbox."""
    outside = Series("run_code", "ms", note="run_code('n+1') on a warm context")
    inside = Series("floor: jupyter_client inside", "ms", note="the same cell in the sandbox")
    with create() as sandbox:
        sandbox.files.write("/home/user/inside.py", _INSIDE.format(count=_TURN))
        sandbox.run_code("1+1")
        for _ in range(max(1, 3 * runs // _TURN)):
            for number in range(_TURN):
                with milliseconds(outside):
                    expect("run_code", sandbox.run_code(f"{number}+1").text, str(number + 1))
            printed = sandbox.commands.run(f"{_PYTHON} inside.py", timeout=300).stdout
            inside.values.extend(float(line) for line in printed.split())
    return [outside, inside]


def _outputs(runs: int) -> list[Series]:
    printed = Series("1 MB of output", "ms", note=f"{_LINES} lines, each flushed, on_stdout")
    chart = Series("PNG chart", "ms", note="matplotlib, one line; the picture and its data")
    with create() as sandbox:
        sandbox.run_code("import matplotlib.pyplot")
        for turn in range(runs):
            got: list[str] = []
            code = f"for _ in range({_LINES}):\n    print('{_LINE}', flush=True)"
            with milliseconds(printed):
                sandbox.run_code(code, on_stdout=lambda message, got=got: got.append(message.line))
                expect("bytes", sum(map(len, got)), _LINES * (len(_LINE) + 1))
            with milliseconds(chart):
                (result,) = sandbox.run_code(_CHART.format(seed=turn + 3)).results
                expect("PNG", base64.b64decode(result.png)[:8], b"\x89PNG\r\n\x1a\n")
                expect("chart", result.chart.elements[0].points[2][0], turn + 3)
    return [printed, chart]


def _idle_memory(bench: Workbench) -> Series:
    """Control groups of sandboxes that have run one cell and then rested."""
    series = Series(
        "memory of an idle interpreter", "MiB", note="control group, without file cache"
    )
    sandboxes = [create() for _ in range(IDLE_SANDBOXES)]
    try:
        for sandbox in sandboxes:
            expect("run_code", sandbox.run_code("1+1").text, "2")
        time.sleep(_SETTLE_S)
        for sandbox in sandboxes:
            group = machine.group(bench.installation, sandbox.sandbox_id)
            series.values.append(group.usage().memory_used / 2**20)
    finally:
        for sandbox in sandboxes:
            sandbox.kill()
    return series

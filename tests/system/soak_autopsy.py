"""What can be found out about a sandbox that is not as it must be, before anybody ends it.

One file per sandbox beside the logs of the installation. Whatever cannot be asked is a line that
says so: the findings matter more than the file.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from alcove.node.drivers import urpc
from stack import Stack

_LOOK_S = 1.0
_LIMIT_S = 10.0


def write(stack: Stack, sandbox_id: str, why: str) -> Path:
    """Write down what everybody says of it; where."""
    folder = stack.data_dir / "autopsies"
    folder.mkdir(exist_ok=True)
    file = folder / f"{sandbox_id}-{time.time():.0f}.txt"
    file.write_text("\n\n".join([why, *_sections(stack, sandbox_id)]) + "\n")
    return file


def _sections(stack: Stack, sandbox_id: str) -> Iterator[str]:
    options = json.loads((stack.data_dir / "config.json").read_text())
    record = _tried("record", lambda: _record(stack, sandbox_id))
    yield record
    key = {"X-API-KEY": stack.api_key}
    yield _tried("control", lambda: _get(f"{stack.api_url}/v1/sandboxes/{sandbox_id}", key))
    node = f"http://127.0.0.1:{options['node_port']}/v1/sandboxes/{sandbox_id}"
    yield _tried("node", lambda: _get(node, {"Authorization": f"Bearer {stack.cluster_key}"}))
    yield _tried("agent", lambda: _ask(stack, sandbox_id, 49983, "/health"))
    yield _tried("keeper", lambda: _ask(stack, sandbox_id, 8000, "/"))
    try:
        slot = stack.data_dir / "slots" / str(json.loads(record.partition("\n")[2])["slot"])
        pid = json.loads((slot / "instance.json").read_text())["pid"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"== no instance: {error!r}"
        return
    yield _tried("instance", (slot / "instance.json").read_text)
    yield _tried("processor time of the sentry, and a second later", lambda: _times(pid))
    yield _tried("stacks", lambda: _stacks(next((slot / "runsc").glob("*.sock"))))
    yield _tried("runsc.log", lambda: _end_of(slot / "runsc.log"))
    yield _tried("console.log", lambda: _end_of(slot / "console.log"))


def _tried(what: str, look: Callable[[], str]) -> str:
    try:
        return f"== {what}\n{look()}"
    except Exception as error:
        return f"== {what}: {error!r}"


def _record(stack: Stack, sandbox_id: str) -> str:
    return (stack.data_dir / "sandboxes" / sandbox_id / "record.json").read_text()


def _get(url: str, headers: dict[str, str]) -> str:
    answer = httpx.get(url, headers=headers, timeout=_LIMIT_S)
    return f"{answer.status_code} {answer.text[:4000]}"


def _ask(stack: Stack, sandbox_id: str, port: int, path: str) -> str:
    where = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port)}
    return _get(f"{stack.sandbox_url}{path}", where)


def _end_of(file: Path) -> str:
    return file.read_text(errors="replace")[-4000:]


def _times(pid: int) -> str:
    before = _jiffies(pid)
    time.sleep(_LOOK_S)
    return f"{before} {_jiffies(pid)} of {os.sysconf('SC_CLK_TCK')} a second"


def _jiffies(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _stacks(path: Path) -> str:
    return str(asyncio.run(urpc.call(path, "debug.Stacks", None, timeout_s=_LIMIT_S)))

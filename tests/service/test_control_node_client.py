"""What control makes of a machine's answers: HttpNode against a socket that says just that."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from alcove.control.nodes.client import (
    HttpNode,
    NodeError,
    NodeFullError,
    NodeImageError,
    NodeRefusedError,
    NodeTimeoutError,
    NodeUnreachableError,
)
from alcove.wire.ids import BuildId, SandboxId, TemplateId
from alcove.wire.node import SandboxSpec
from alcove.wire.states import StopReason

SPEC = SandboxSpec(SandboxId("i1"), 1, TemplateId("t"), BuildId("b"), "", 1, 64, 64)
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def problem(status: int, error_code: str) -> bytes:
    body = json.dumps({"code": status, "message": "why", "error_code": error_code}).encode()
    return http(status, body)


def http(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d -\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@asynccontextmanager
async def machine(answer: bytes, *, stays: bool = False) -> AsyncIterator[HttpNode]:
    """A machine that says `answer` to every request, and then hangs up unless it `stays`."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if stays:
            await over.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    node = HttpNode(f"http://127.0.0.1:{port}", "token", start_timeout_s=0.2)
    try:
        yield node
    finally:
        over.set()
        await node.close()
        server.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(503, "sandbox_capacity_unavailable"), NodeFullError),
        (problem(409, "template_not_ready"), NodeImageError),
        (problem(409, "conflict"), NodeRefusedError),
        (problem(500, "sandbox_create_failed"), NodeRefusedError),
        (http(409, b"not JSON"), NodeRefusedError),
        (http(409, b"[]"), NodeRefusedError),
        (http(200, b"not JSON"), NodeRefusedError),
        (http(404, b""), NodeRefusedError),
        (b"", NodeUnreachableError),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NodeUnreachableError),
        (b"HTTP/1.1 200 -\r\nContent-Length: 9\r\n\r\n{", NodeUnreachableError),
    ],
)
def test_a_refused_start_has_its_own_error(answer: bytes, error: type[NodeError]) -> None:
    async def scenario() -> None:
        async with machine(answer) as node:
            with pytest.raises(NodeError) as raised:
                await node.start(SPEC)
        assert type(raised.value) is error

    asyncio.run(scenario())


def test_a_machine_that_says_nothing_is_given_up() -> None:
    async def scenario() -> None:
        async with machine(b"", stays=True) as node:
            with pytest.raises(NodeTimeoutError):
                await node.start(SPEC)

    asyncio.run(scenario())


def test_nobody_at_the_address() -> None:
    async def scenario() -> None:
        async with machine(b"") as node:
            pass
        node = HttpNode(node._url, "token", start_timeout_s=1)
        with pytest.raises(NodeUnreachableError):
            await node.report()
        await node.close()

    asyncio.run(scenario())


def test_what_is_not_there_is_no_error_where_that_is_an_answer() -> None:
    async def scenario() -> None:
        async with machine(problem(404, "not_found")) as node:
            assert await node.find(SandboxId("i1")) is None
        async with machine(problem(404, "not_found")) as node:
            await node.stop(SandboxId("i1"), StopReason.KILLED)
        async with machine(problem(404, "not_found")) as node:
            assert await node.logs(SandboxId("i1")) == []

    asyncio.run(scenario())


def test_an_answer_of_another_shape_is_a_refusal() -> None:
    async def scenario() -> None:
        async with machine(http(200, b'{"state": "of the future"}')) as node:
            with pytest.raises(NodeError):
                await node.start(SPEC)
        async with machine(http(200, b"{}")) as node:
            with pytest.raises(NodeError):
                await node.list_all()

    asyncio.run(scenario())


def test_a_sign_of_life_is_no_event() -> None:
    event = {"sequence": 1, "at": 0.0, "kind": "hello", "subject": "", "reason": "", "detail": ""}
    line = json.dumps(event).encode()

    async def scenario() -> None:
        async with machine(http(200, b"\n" + line + b"\n\n" + line + b"\n")) as node:
            assert [told.kind async for told in node.events()] == ["hello", "hello"]

    asyncio.run(scenario())

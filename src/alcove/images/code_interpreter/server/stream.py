"""The answer to POST /execute: lines as they come, until the end or until the client is gone."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from . import messages

_KEEPALIVE_S = 5.0
_HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json")],
}

Work = Callable[[Callable[[bytes], Awaitable[None]]], Awaitable[None]]


class LineStream:
    """An ASGI response. `work` gets a function that writes lines and waits for a slow client.

    A client that goes away cancels `work`; after some silence a keepalive line is sent, which also
    finds out clients that went without a word.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._started = False
        self._writing = False
        self._wrote_s = 0.0

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._answer())
            helpers = [
                group.create_task(self._keep_alive()),
                group.create_task(self._watch(receive, work)),
            ]
            work.add_done_callback(lambda _: [helper.cancel() for helper in helpers])

    async def _answer(self) -> None:
        await self._work(self._write)
        await self._write(messages.encode(messages.END), last=True)

    async def _write(self, lines: bytes, *, last: bool = False) -> None:
        self._writing = True
        if not self._started:
            self._started = True
            await self._send(_HEAD)
        await self._send({"type": "http.response.body", "body": lines, "more_body": not last})
        self._writing = False
        self._wrote_s = asyncio.get_running_loop().time()

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        self._wrote_s = loop.time()
        while True:
            await asyncio.sleep(max(0.1, self._wrote_s + _KEEPALIVE_S - loop.time()))
            if not self._writing and loop.time() - self._wrote_s >= _KEEPALIVE_S:
                await self._write(messages.encode(messages.KEEPALIVE))

    @staticmethod
    async def _watch(receive: Receive, work: asyncio.Task[None]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        work.cancel()

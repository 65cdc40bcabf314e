"""An answer whose body is a machine's own, passed on in pieces."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class Passed(StreamingResponse):
    """Ends the machine's answer however ours ends."""

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        status: int,
        headers: dict[str, str],
        stack: AsyncExitStack,
    ) -> None:
        """`stack`: what is to be left when the body has been sent, or cannot be."""
        super().__init__(pieces, status, headers)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)

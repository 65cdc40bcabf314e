"""HTTP connections that write once for all that is said in one turn of the event loop.

uvicorn writes the head of an answer and each piece of its body by themselves. Each would wake the
proxies between here and the client, and each is a system call, which in a sandbox is not cheap.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_AT_ONCE_BYTES = 64 * 1024


class GatheringProtocol(HttpToolsProtocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Gathering(transport))  # type: ignore[arg-type]  # stands for one


class _Gathering:
    """A transport; what it does not do itself is done by the one it stands before."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            asyncio.get_running_loop().call_soon(self._send)
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes >= _AT_ONCE_BYTES:
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if not self._pieces:
            return
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._bytes = 0
        # What is written after the end of the connection would be a warning in the log.
        if not self._transport.is_closing():
            self._transport.write(data)

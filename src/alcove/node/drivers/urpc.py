"""Client of gVisor's control socket: one JSON object out with file descriptors, one JSON object in.

It is internal to one runsc version, so the driver decides by version whether to use it.
"""

import array
import asyncio
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MAX_ANSWER_BYTES = 16 << 20


class UrpcError(Exception):
    """A call over the control socket failed.

    UrpcError
    ├── RemoteError         the sandbox answered that it could not do it; it still runs
    └── ConnectionLostError no such socket, no answer in time, or the sandbox ended meanwhile
    """


class RemoteError(UrpcError):
    pass


class ConnectionLostError(UrpcError):
    pass


async def call(
    path: Path, method: str, argument: Any, fds: Sequence[int] = (), *, timeout_s: float
) -> Any:
    """Call one method and return its result. The descriptors stay the caller's."""
    loop = asyncio.get_running_loop()
    request = json.dumps({"method": method, "arg": argument}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout_s):
                await _connect(sock, path)
                # The first byte carries the descriptors; the rest follows as the socket takes it.
                sent = sock.sendmsg([request], _rights(fds))
                await loop.sock_sendall(sock, request[sent:])
                return _result(method, await _answer(sock))
        except TimeoutError as error:
            raise ConnectionLostError(f"{method}: no answer within {timeout_s:g} s") from error
        except OSError as error:
            raise ConnectionLostError(f"{method}: {path}: {error.strerror}") from error


async def _connect(sock: socket.socket, path: Path) -> None:
    # By way of the directory's descriptor, because a socket address holds only 107 bytes.
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        address = f"/proc/self/fd/{directory}/{path.name}"
        await asyncio.get_running_loop().sock_connect(sock, address)
    finally:
        os.close(directory)


async def _answer(sock: socket.socket) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    text = bytearray()
    while chunk := await loop.sock_recv(sock, 64 << 10):
        text += chunk
        if len(text) > _MAX_ANSWER_BYTES:
            raise ConnectionLostError("the answer does not end")
        try:
            answer = json.loads(text)
        except ValueError:
            continue  # not whole yet
        if not isinstance(answer, dict):
            break
        return answer
    raise ConnectionLostError("the sandbox ended before it answered")


def _result(method: str, answer: dict[str, Any]) -> Any:
    if not answer.get("success"):
        raise RemoteError(f"{method}: {answer.get('err') or 'failed without a reason'}")
    return answer.get("result")


def _rights(fds: Sequence[int]) -> "list[tuple[int, int, array.array[int]]]":
    if not fds:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]

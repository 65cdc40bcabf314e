"""The sandbox's variables, from the agent's GET /envs (contract e2b 6.3).

The agent is asked at a context's first execution, and again when the sandbox has become another
one: a clone of a snapshot has variables of its own, and the agent gives it a host name of its own.
"""

import asyncio
import json
import logging
import os
import socket
import struct

_log = logging.getLogger(__name__)

_LIMIT_S = 2.0
_LIMIT_BYTES = 16 * 1024 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def identity() -> str:
    """What differs between this sandbox and the ones it was cloned from."""
    return os.uname().nodename


async def fetch(port: int, token: str | None) -> dict[str, str] | None:
    """The variables; None when the agent does not answer, or not to this token.

    `token`: the request's X-Access-Token, without which a secured agent refuses (surprise 68).
    """
    try:
        async with asyncio.timeout(_LIMIT_S):
            status, body = await _get(port, token)
        if status != 200:
            return None
        values = json.loads(body)
    except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
        _log.warning("the agent's variables could not be read: %r", error)
        return None
    if not isinstance(values, dict):
        return None
    return {
        str(name): value
        for name, value in values.items()
        if isinstance(value, str) and "\0" not in value
    }


async def _get(port: int, token: str | None) -> tuple[int, bytes]:
    """One GET /envs by hand: an HTTP client would cost more memory than the rest of the server."""
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ValueError("the access token has characters that no header can carry")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LIMIT_BYTES)
    try:
        # Closed by a reset: a connection in TIME_WAIT would make the next snapshot slower.
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
        )
        header = f"X-Access-Token: {token}\r\n" if token else ""
        writer.write(f"GET /envs HTTP/1.1\r\nHost: localhost:{port}\r\n{header}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        first, *fields = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (field.partition(":") for field in fields)
        }
        length = int(headers["content-length"]) if "content-length" in headers else 0
        if length > _LIMIT_BYTES:
            raise ValueError("the agent's variables are too many")
        return int(first.split()[1]), await reader.readexactly(length)
    except IndexError as error:
        raise ValueError("the agent did not answer with HTTP") from error
    finally:
        writer.close()

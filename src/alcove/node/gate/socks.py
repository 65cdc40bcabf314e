"""Connections through a tenant's SOCKS5 proxy: RFC 1928, with user name and password (RFC 1929).

The proxy is as hostile as any server: its answers are read to their exact lengths, in a time limit
that the caller sets.
"""

import asyncio
import socket
from ipaddress import AddressValueError, IPv4Address

_VERSION, _CONNECT, _GRANTED = 5, 1, 0
_NO_AUTHENTICATION, _PASSWORD = 0, 2
_PASSWORD_VERSION = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_NAME_MAX_BYTES = 255
_REASONS = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "it took too long",
    7: "it cannot connect",
    8: "it does not know such addresses",
}


class ProxyError(OSError):
    """The proxy does not connect us; the message says why, without its credentials."""


async def connect(
    proxy: socket.socket, host: str, port: int, *, username: str, password: str
) -> None:
    """Have a connection to the proxy become one to a name or IPv4 address. Raises ProxyError."""
    loop = asyncio.get_running_loop()
    methods = bytes([_NO_AUTHENTICATION, *([_PASSWORD] if username else [])])
    await loop.sock_sendall(proxy, bytes([_VERSION, len(methods)]) + methods)
    version, method = await _read(proxy, 2)
    if version != _VERSION or method not in methods:
        raise ProxyError("the egress proxy does not accept how we authenticate")
    if method == _PASSWORD:
        await _authenticate(proxy, username.encode(), password.encode())
    await loop.sock_sendall(proxy, bytes([_VERSION, _CONNECT, 0]) + _target(host, port))
    version, reply, _, kind = await _read(proxy, 4)
    if version != _VERSION or reply != _GRANTED:
        raise ProxyError(f"the egress proxy refuses: {_REASONS.get(reply, 'it does not say why')}")
    # Where it connected from; nobody needs it.
    sizes = {_IPV4: 4, _IPV6: 16}
    size = (await _read(proxy, 1))[0] if kind == _NAME else sizes.get(kind)
    if size is None:
        raise ProxyError("the egress proxy does not speak SOCKS5")
    await _read(proxy, size + 2)


async def _authenticate(proxy: socket.socket, username: bytes, password: bytes) -> None:
    said = bytes([_PASSWORD_VERSION, len(username)]) + username + bytes([len(password)]) + password
    await asyncio.get_running_loop().sock_sendall(proxy, said)
    _, status = await _read(proxy, 2)
    if status != _GRANTED:
        raise ProxyError("the egress proxy refuses the user name or the password")


def _target(host: str, port: int) -> bytes:
    try:
        address = bytes([_IPV4]) + IPv4Address(host).packed
    except AddressValueError:
        name = host.encode("ascii", "replace")[:_NAME_MAX_BYTES]
        address = bytes([_NAME, len(name)]) + name
    return address + port.to_bytes(2)


async def _read(proxy: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        piece = await loop.sock_recv(proxy, count - len(data))
        if not piece:
            raise ProxyError("the egress proxy closed the connection")
        data += piece
    return data

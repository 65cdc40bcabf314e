"""The connections of an address, as the host's kernel knows them: listed, forgotten.

One netlink request each, filtered in the kernel (Linux 5.8).
"""

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

_NETLINK_NETFILTER = 12
_DELETE_CONNECTIONS = 1 << 8 | 2  # subsystem conntrack, IPCTNL_MSG_CT_DELETE
_GET_CONNECTIONS = 1 << 8 | 1  # IPCTNL_MSG_CT_GET
_REQUEST_WITH_ANSWER = 0x1 | 0x4
_REQUEST_OF_ALL = 0x1 | 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NESTED = 0x8000
_TUPLE_ORIG, _TUPLE_IP, _FILTER, _FILTER_ORIG, _FILTER_REPLY = 1, 1, 25, 1, 2
_SOURCE, _DESTINATION = 1, 2  # attribute numbers, and as it happens bits of the filter
_TUPLE_PROTO, _PROTOINFO, _PROTOINFO_TCP, _TCP_STATE = 2, 4, 1, 1
_PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT = 2, 3
_BEING_OPENED = {1, 2}  # SYN_SENT, SYN_RECV
_HEADER = struct.Struct("=IHHII")
_FAMILY_BYTES = 4
_ATTRIBUTE = struct.Struct("=HH")
_ANSWER_BYTES = 4096
_DUMP_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Opening:
    """A TCP connection that the address has asked for and nobody has answered yet."""

    source_port: int
    destination: IPv4Address
    destination_port: int


def forget(address: IPv4Address) -> None:
    """Drop every connection from or to the address.

    Without this the next sandbox of a slot would be sent what the last one's peers still send.
    """
    for direction in (_SOURCE, _DESTINATION):
        _request(_connections_of(address, direction))


def opening(address: IPv4Address) -> list[Opening]:
    """The connections from the address that are just being opened."""
    body = _connections_of(address, _SOURCE)
    header = _HEADER.pack(_HEADER.size + len(body), _GET_CONNECTIONS, _REQUEST_OF_ALL, 1, 0)
    found: list[Opening] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.bind((0, 0))
        netlink.send(header + body)
        while True:
            answer = netlink.recv(_DUMP_BYTES)
            for kind, message in _messages(answer):
                if kind == _NLMSG_ERROR:
                    _raise_for(message)
                if kind in {_NLMSG_ERROR, _NLMSG_DONE}:
                    return found
                connection = _opening(dict(_attributes(message[_FAMILY_BYTES:])), address)
                if connection is not None:
                    found.append(connection)


def _connections_of(address: IPv4Address, direction: int) -> bytes:
    return (
        struct.pack("=BBH", socket.AF_INET, 0, 0)
        + _nest(_TUPLE_ORIG, _nest(_TUPLE_IP, _attribute(direction, address.packed)))
        + _nest(
            _FILTER,
            _attribute(_FILTER_ORIG, struct.pack("=I", direction))
            + _attribute(_FILTER_REPLY, struct.pack("=I", 0)),
        )
    )


def _opening(attributes: dict[int, bytes], address: IPv4Address) -> Opening | None:
    state = _find(attributes, _PROTOINFO, _PROTOINFO_TCP, _TCP_STATE)
    source = _find(attributes, _TUPLE_ORIG, _TUPLE_IP, _SOURCE)
    destination = _find(attributes, _TUPLE_ORIG, _TUPLE_IP, _DESTINATION)
    ports = [
        _find(attributes, _TUPLE_ORIG, _TUPLE_PROTO, port)
        for port in (_PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT)
    ]
    if not state or state[0] not in _BEING_OPENED or source != address.packed:
        return None
    if destination is None or len(destination) != 4 or ports[0] is None or ports[1] is None:
        return None
    return Opening(
        int.from_bytes(ports[0], "big"), IPv4Address(destination), int.from_bytes(ports[1], "big")
    )


def _find(attributes: dict[int, bytes], *path: int) -> bytes | None:
    value: bytes | None = None
    for kind in path:
        value = attributes.get(kind)
        if value is None:
            return None
        attributes = dict(_attributes(value))
    return value


def _messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    while len(answer) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(answer)
        yield kind, answer[_HEADER.size : length]
        answer = answer[length + -length % 4 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return  # a value, not a list
        yield kind & ~_NESTED, data[_ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]


def _raise_for(message: bytes) -> None:
    (code,) = struct.unpack_from("=i", message)
    if code != 0:
        raise OSError(-code, f"conntrack: {os.strerror(-code)}")


def _request(body: bytes) -> None:
    header = _HEADER.pack(_HEADER.size + len(body), _DELETE_CONNECTIONS, _REQUEST_WITH_ANSWER, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.bind((0, 0))
        netlink.send(header + body)
        answer = netlink.recv(_ANSWER_BYTES)
    for kind, message in _messages(answer):
        if kind == _NLMSG_ERROR:
            _raise_for(message)


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding


def _nest(kind: int, attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, attributes)

"""Forget the connections of an address: one netlink request, filtered in the kernel (Linux 5.8)."""

import os
import socket
import struct
from ipaddress import IPv4Address

_NETLINK_NETFILTER = 12
_DELETE_CONNECTIONS = 1 << 8 | 2  # subsystem conntrack, IPCTNL_MSG_CT_DELETE
_REQUEST_WITH_ANSWER = 0x1 | 0x4
_NLMSG_ERROR = 2
_NESTED = 0x8000
_TUPLE_ORIG, _TUPLE_IP, _FILTER, _FILTER_ORIG, _FILTER_REPLY = 1, 1, 25, 1, 2
_SOURCE, _DESTINATION = 1, 2  # attribute numbers, and as it happens bits of the filter
_HEADER = struct.Struct("=IHHII")
_ANSWER_BYTES = 4096


def forget(address: IPv4Address) -> None:
    """Drop every connection from or to the address.

    Without this the next sandbox of a slot would be sent what the last one's peers still send.
    """
    for direction in (_SOURCE, _DESTINATION):
        _request(
            struct.pack("=BBH", socket.AF_INET, 0, 0)
            + _nest(_TUPLE_ORIG, _nest(_TUPLE_IP, _attribute(direction, address.packed)))
            + _nest(
                _FILTER,
                _attribute(_FILTER_ORIG, struct.pack("=I", direction))
                + _attribute(_FILTER_REPLY, struct.pack("=I", 0)),
            )
        )


def _request(body: bytes) -> None:
    header = _HEADER.pack(_HEADER.size + len(body), _DELETE_CONNECTIONS, _REQUEST_WITH_ANSWER, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.bind((0, 0))
        netlink.send(header + body)
        answer = netlink.recv(_ANSWER_BYTES)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if code != 0:
            raise OSError(-code, f"conntrack: {os.strerror(-code)}")


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding


def _nest(kind: int, attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, attributes)

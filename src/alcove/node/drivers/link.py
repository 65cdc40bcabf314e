"""The guest's network device as gVisor wants it: a packet socket on eth0 and a description.

The sentry owns the TCP/IP stack. It gets a raw socket bound to the device, opened inside the netns,
and is told addresses and routes, which are the same in every sandbox.
"""

import asyncio
import base64
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alcove.node import egress
from alcove.node.drivers.driver import Place

GUEST_ADDRESS = str(egress.GUEST_ADDRESS)
GUEST_NETWORK = "169.254.0.20"
GUEST_PREFIX = 30
GATEWAY = str(egress.GATEWAY_ADDRESS)
DEVICE = "eth0"

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_SIOCGIFADDR = 0x8915
_SIOCSIFADDR = 0x8916
_SIOCGIFMTU = 0x8921
_SIOCGIFHWADDR = 0x8927
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 4 << 20
_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_GSO_BYTES = 1 << 16
_QDISC_FIFO = 1


@dataclass(frozen=True, slots=True)
class Device:
    """An open packet socket on a netns's device. The holder closes `fd`."""

    fd: int
    mtu: int
    mac: bytes


async def open_device(netns: Path) -> Device:
    """Open the device of a network namespace without leaving our own."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Device] = loop.create_future()

    def deliver(device: Device | OSError) -> None:
        if isinstance(device, OSError):
            if not done.done():
                done.set_exception(device)
        elif done.done():
            os.close(device.fd)
        else:
            done.set_result(device)

    # A namespace belongs to a thread: a thread of its own ends and takes the change with it.
    thread = threading.Thread(target=_open_in, args=(netns, loop, deliver), daemon=True)
    thread.start()
    return await done


def description(place: Place, device: Device) -> dict[str, Any]:
    """Argument of Network.CreateLinksAndRoutes."""
    gateway_mac = bytes.fromhex(
        Path(f"/sys/class/net/{place.veth}/address").read_text().strip().replace(":", "")
    )
    loopback = {
        "Name": "lo",
        "Addresses": [
            {"Address": "127.0.0.1", "PrefixLen": 8},
            {"Address": "::1", "PrefixLen": 128},
        ],
        "Routes": [_route("127.0.0.0", _mask(8)), _route("::1", b"\xff" * 16)],
    }
    link = {
        "Name": DEVICE,
        "MTU": device.mtu,
        "Addresses": [{"Address": GUEST_ADDRESS, "PrefixLen": GUEST_PREFIX}],
        "Routes": [_route(GUEST_NETWORK, _mask(GUEST_PREFIX))],
        # Segmentation by the host (PACKET_VNET_HDR below) sends ten times as fast as gVisor's own,
        # and two processors per channel make up for what it costs when receiving.
        "GSOMaxSize": _GSO_BYTES,
        "GVisorGSOEnabled": False,
        "RXChecksumOffload": True,
        "TXChecksumOffload": False,
        "LinkAddress": _base64(device.mac),
        "QDisc": _QDISC_FIFO,
        "Neighbors": [{"IP": GATEWAY, "HardwareAddr": _base64(gateway_mac)}],
        "NumChannels": 1,
        "ProcessorsPerChannel": 2,
    }
    return {
        "LoopbackLinks": [loopback],
        "FDBasedLinks": [link],
        "Defaultv4Gateway": {
            "Route": _route("0.0.0.0", _mask(0)) | {"Gateway": GATEWAY},
            "Name": DEVICE,
        },
        # Lets a checkpoint abort connections to the outside instead of failing.
        "DisconnectOk": True,
    }


def commands() -> str:
    """What `ip -batch` must do in the netns before runsc's command line reads it."""
    return (
        f"addr replace {GUEST_ADDRESS}/{GUEST_PREFIX} dev {DEVICE}\n"
        f"route replace default via {GATEWAY}\n"
    )


def _open_in(
    netns: Path, loop: asyncio.AbstractEventLoop, deliver: Callable[[Device | OSError], None]
) -> None:
    try:
        _enter(netns)
        outcome: Device | OSError = _open()
    except OSError as error:
        outcome = error
    loop.call_soon_threadsafe(deliver, outcome)


def _enter(netns: Path) -> None:
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(netns))
    finally:
        os.close(fd)


def _open() -> Device:
    # Protocol 0 first: a socket that already receives would make bind() wait for the kernel.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((DEVICE, _ETH_P_ALL))
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        # 4 MiB: the default buffer drops packets at full speed.
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
        request = struct.pack("16s24x", DEVICE.encode())
        mtu = struct.unpack_from("i", fcntl.ioctl(sock, _SIOCGIFMTU, request), 16)[0]
        mac = fcntl.ioctl(sock, _SIOCGIFHWADDR, request)[18:24]
        _silence_kernel(request)
        return Device(sock.detach(), mtu, mac)


def _silence_kernel(request: bytes) -> None:
    """Take the address from the host's own stack, which would answer beside the sentry's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, _SIOCGIFADDR, request)
        except OSError:
            return  # it has none
        fcntl.ioctl(sock, _SIOCSIFADDR, struct.pack("16sH22x", DEVICE.encode(), socket.AF_INET))


def _route(destination: str, mask: bytes) -> dict[str, Any]:
    return {"Destination": {"IP": destination, "Mask": _base64(mask)}}


def _mask(prefix: int) -> bytes:
    return ((0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF).to_bytes(4, "big")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

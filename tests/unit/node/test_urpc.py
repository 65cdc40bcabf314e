"""The control socket's client against a real socket with a scripted other end."""

import array
import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from alcove.node.drivers.urpc import ConnectionLostError, RemoteError, call

Script = Callable[[socket.socket], None]


def talk(tmp_path: Path, script: Script, *, fds: tuple[int, ...] = (), timeout_s: float = 5) -> Any:
    """Call "m" with {"a": 1} while `script` plays the sandbox in a thread."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        async def scenario() -> Any:
            sandbox = asyncio.to_thread(_play, listener, script)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_drop_result(sandbox))
                return await call(path, "m", {"a": 1}, fds, timeout_s=timeout_s)

        try:
            return asyncio.run(scenario())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None


async def _drop_result(work: Awaitable[None]) -> None:
    await work


def _play(listener: socket.socket, script: Script) -> None:
    connection, _ = listener.accept()
    with connection:
        script(connection)


def test_the_result_is_returned(tmp_path: Path) -> None:
    def sandbox(sock: socket.socket) -> None:
        assert json.loads(sock.recv(1000)) == {"method": "m", "arg": {"a": 1}}
        sock.sendall(b'{"success":true,"err":"","result":{"pid":7}}')

    assert talk(tmp_path, sandbox) == {"pid": 7}


def test_an_answer_in_pieces_is_put_together(tmp_path: Path) -> None:
    def sandbox(sock: socket.socket) -> None:
        sock.recv(1000)
        for byte in b'{"success":true,"result":"\xc3\xa4}"}':
            sock.sendall(bytes([byte]))

    assert talk(tmp_path, sandbox) == "ä}"


def test_descriptors_arrive_with_the_first_byte(tmp_path: Path) -> None:
    received = []

    def sandbox(sock: socket.socket) -> None:
        _, ancillary, _, _ = sock.recvmsg(1, 1000)
        numbers = array.array("i")
        numbers.frombytes(ancillary[0][2])
        received.extend(os.read(number, 10) for number in numbers)
        for number in numbers:
            os.close(number)
        sock.recv(1000)
        sock.sendall(b'{"success":true}')

    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    files = [os.open(tmp_path / name, os.O_RDONLY) for name in ("one", "two")]
    try:
        talk(tmp_path, sandbox, fds=tuple(files))
    finally:
        for number in files:
            os.close(number)  # still ours
    assert received == [b"one", b"two"]


def test_a_refusal_has_its_reason(tmp_path: Path) -> None:
    def sandbox(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b'{"success":false,"err":"no such thing"}')

    with pytest.raises(RemoteError, match="m: no such thing"):
        talk(tmp_path, sandbox)


@pytest.mark.parametrize("last", [b"", b'{"success":tr', b"[]"])
def test_an_end_before_the_answer_is_an_error(tmp_path: Path, last: bytes) -> None:
    def sandbox(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(last)

    with pytest.raises(ConnectionLostError):
        talk(tmp_path, sandbox)


def test_silence_is_an_error(tmp_path: Path) -> None:
    def sandbox(sock: socket.socket) -> None:
        while sock.recv(1000):
            pass

    with pytest.raises(ConnectionLostError, match="no answer"):
        talk(tmp_path, sandbox, timeout_s=0.05)


def test_no_socket_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.sock", tmp_path / "absent" / "control.sock"):
        with pytest.raises(ConnectionLostError):
            asyncio.run(call(path, "m", None, timeout_s=1))


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(deep, os.O_PATH)
        listener.bind(f"/proc/self/fd/{here}/control.sock")
        os.close(here)
        listener.listen()

        def sandbox(sock: socket.socket) -> None:
            sock.recv(1000)
            sock.sendall(b'{"success":true,"result":1}')

        async def scenario() -> Any:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_drop_result(asyncio.to_thread(_play, listener, sandbox)))
                return await call(deep / "control.sock", "m", None, timeout_s=5)

        assert asyncio.run(scenario()) == 1

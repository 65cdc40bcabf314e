"""sudo where set-user-ID programs do nothing: the agent starts the command in the caller's place.

    sudo (elevation_client.py) ──descriptors, options, environment──▶ this socket ──▶ spawn.py
         ◀──────────────────────── how the command ended ───────────

One connection is one command:

    ASKED ──whole request──▶ RUNNING ──child ended──▶ closed
      └──refused · 5 s──▶ closed   └──client gone──▶ SIGHUP, 5 s, SIGKILL

A client that is gone takes its command with it (unless -b), so that a deadline or a kill of sudo
ends what it started. Who asks is told by SCM_CREDENTIALS of the very message that brings the
descriptors: SO_PEERCRED names the reader under gVisor, and a plain write can be had from any
privileged program.
"""

import contextlib
import logging
import os
import signal
import socket
import struct
from asyncio import TimerHandle, get_running_loop

from alcove.guest import elevation_rules as rules
from alcove.guest.children import Children
from alcove.guest.elevation_rules import RefusedError
from alcove.guest.environment import Environment
from alcove.guest.spawn import Launch, SpawnError, Stdio, find_program, launch
from alcove.guest.users import User

SOCKET = "/run/alcove/elevation.sock"

_log = logging.getLogger(__name__)

_MAX_REQUEST_BYTES = 4 << 20
_MAX_DESCRIPTORS = 8
_MAX_ASKING = 16
"""Requests under way at once; more wait in the socket's queue."""
_QUEUE = 128
_REQUEST_S = 5.0
_GRACE_S = 5.0
_CHUNK_BYTES = 65536
_HEAD = struct.Struct("!I")
_CREDENTIALS = struct.Struct("=iII")
_DESCRIPTOR_BYTES = 4
_ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(
    _MAX_DESCRIPTORS * _DESCRIPTOR_BYTES
)
_FORWARDED = {
    number: number
    for number in (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGCONT,
        signal.SIGWINCH,
    )
} | {signal.SIGTSTP: signal.SIGSTOP}  # the group has no shell to continue it: TSTP is ignored there
_DEFAULT_UMASK = 0o022


class Elevation:
    """The socket; serves for as long as the agent lives."""

    def __init__(self, environment: Environment, children: Children) -> None:
        self.environment = environment
        self.children = children
        self._listener: socket.socket | None = None
        self._asking = 0

    def listen(self, path: str = SOCKET) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Handed on to every connection, so that already the first message has its credentials.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 - anybody may ask; rules.authorize decides
        listener.listen(_QUEUE)
        listener.setblocking(False)
        self._listener = listener
        get_running_loop().add_reader(listener, self._accept, listener)

    def asked(self) -> None:
        """A request is complete or refused: there is room for another."""
        self._asking -= 1
        if self._listener is not None and self._asking == _MAX_ASKING - 1:
            get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._asking += 1
        if self._asking == _MAX_ASKING:
            get_running_loop().remove_reader(listener)
        _Call(self, connection)


class _Call:
    """One connection and the command it is for."""

    def __init__(self, elevation: Elevation, connection: socket.socket) -> None:
        self._elevation = elevation
        self._connection = connection
        self._descriptors: list[int] = []
        self._uid = -1
        self._data = bytearray()
        self._pid: int | None = None
        loop = get_running_loop()
        self._timer: TimerHandle | None = loop.call_later(_REQUEST_S, self._refuse, "too slow")
        loop.add_reader(connection, self._read_request)

    def _read_request(self) -> None:
        try:
            if self._receive():
                self._serve(rules.parse(bytes(self._data[_HEAD.size :])))
        except BlockingIOError:
            return
        except (RefusedError, SpawnError) as error:
            self._refuse(str(error))
        except (OSError, ValueError, struct.error) as error:
            self._refuse(f"the request cannot be served: {error}")

    def _receive(self) -> bool:
        if self._descriptors:
            data = self._connection.recv(_CHUNK_BYTES)
        else:
            data, ancillary, flags, _ = self._connection.recvmsg(
                _CHUNK_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
            self._take(ancillary)
            if flags & socket.MSG_CTRUNC or not 4 <= len(self._descriptors) <= 5 or self._uid < 0:
                raise RefusedError("that is no request of sudo's")
        if not data:
            raise RefusedError("the request ends early")
        self._data += data
        if len(self._data) < _HEAD.size:
            return False
        size: int = _HEAD.unpack_from(self._data)[0]
        if size > _MAX_REQUEST_BYTES:
            raise RefusedError("arguments and environment are too long")
        return len(self._data) >= _HEAD.size + size

    def _take(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_RIGHTS:
                count = len(data) // _DESCRIPTOR_BYTES
                self._descriptors += struct.unpack(f"={count}i", data[: count * _DESCRIPTOR_BYTES])
            elif kind == socket.SCM_CREDENTIALS:
                _, self._uid, _ = _CREDENTIALS.unpack(data)

    def _serve(self, request: rules.Request) -> None:
        environment = self._elevation.environment
        caller = rules.authorize(self._uid, environment)
        user = rules.target(request, environment)
        if request.options.keys() & {"list", "validate"}:
            answer = _listing(request, caller, environment.path)
            self._stop_asking()
            self._finish(b"O" + answer.encode(errors="surrogateescape"))
            return
        program = rules.program(request, caller, user)
        self._start(request, self._launch(request, caller, user, program))
        _log.info("sudo: %s starts %s as %s", caller.name, program.file, user.name)

    def _start(self, request: rules.Request, wanted: Launch) -> None:
        # Threads that store files share the mask: for this moment they can only be stricter.
        umask = os.umask(_DEFAULT_UMASK | int(request.options.get("umask", "0")) & 0o777)
        try:
            self._pid = launch(wanted)
        finally:
            os.umask(umask)
        self._elevation.children.watch(self._pid, self._ended)
        self._stop_asking()
        if "background" in request.options:
            self._finish(b"E\0")
        else:
            get_running_loop().add_reader(self._connection, self._pass_signals)

    def _launch(
        self, request: rules.Request, caller: User, user: User, program: rules.Program
    ) -> Launch:
        environment = self._elevation.environment
        directory: int | str = self._descriptors[3]
        if "chdir" in request.options or "login" in request.options:
            directory = request.options.get("chdir") or user.home
            if not os.path.isdir(directory) and "chdir" not in request.options:
                directory = "/"
        return Launch(
            argv=program.argv,
            env=rules.variables(request, caller, user, environment, program),
            cwd=directory,
            user=user,
            stdio=self._stdio(request, user),
            max_processes=environment.max_processes,
            file=_found(program.file, environment.path, directory),
        )

    def _stdio(self, request: rules.Request, user: User) -> Stdio:
        stdin, stdout, stderr = self._descriptors[:3]
        kind = request.options.get("terminal")
        if kind is None:
            return Stdio(None, stdin, stdout, stderr)
        if len(self._descriptors) != 5:
            raise RefusedError("the request names a terminal but brings none")
        replica = self._descriptors[4]
        path = os.ttyname(replica)
        os.fchown(replica, user.uid, -1)
        return Stdio(path, stderr=-1 if kind == "err" else stderr)

    def _pass_signals(self) -> None:
        try:
            numbers = self._connection.recv(64)
        except BlockingIOError:
            return
        except OSError:
            numbers = b""
        for number in numbers:
            if number in _FORWARDED:
                self._signal(_FORWARDED[signal.Signals(number)])
        if not numbers:
            self._hang_up()

    def _hang_up(self) -> None:
        self._close()
        self._signal(signal.SIGHUP)
        self._signal(signal.SIGCONT)
        self._timer = get_running_loop().call_later(_GRACE_S, self._signal, signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)

    def _ended(self, status: int) -> None:
        self._pid = None
        code = os.waitstatus_to_exitcode(status)
        self._finish(b"E" + bytes([code]) if code >= 0 else b"K" + bytes([-code]))

    def _refuse(self, reason: str) -> None:
        _log.info("sudo: user id %s is refused: %s", self._uid, reason)
        self._stop_asking()
        self._finish(b"R" + reason.encode(errors="replace"))

    def _stop_asking(self) -> None:
        """The request is over: give back what was held for it."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._data.clear()
        self._elevation.asked()
        self._cancel_timer()

    def _finish(self, answer: bytes) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(answer)
        self._close()

    def _close(self) -> None:
        self._cancel_timer()
        if self._connection.fileno() >= 0:
            get_running_loop().remove_reader(self._connection)
            self._connection.close()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _found(file: str, path: str, directory: int | str) -> str:
    """The program's path. Raises RefusedError in sudo's words."""
    if "/" not in file:
        try:
            return find_program(file, path)
        except OSError:
            raise RefusedError(f"{file}: command not found") from None
    there = (
        os.access(os.path.join(directory, file), os.X_OK)
        if isinstance(directory, str)
        else os.access(file, os.X_OK, dir_fd=directory)
    )
    if not there:
        raise RefusedError(f"{file}: command not found")
    return file


def _listing(request: rules.Request, caller: User, path: str) -> str:
    if "list" not in request.options:
        return ""
    if request.command:
        return " ".join([_found(request.command[0], path, "/"), *request.command[1:]]) + "\n"
    return (
        f"User {caller.name} may run the following commands on {socket.gethostname()}:\n"
        "    (ALL : ALL) NOPASSWD: ALL\n"
    )

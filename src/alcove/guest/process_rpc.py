"""process.Process: what clients may do with processes (contract e2b 3.5 and 3.6)."""

import os
import signal
from asyncio import timeout
from collections.abc import AsyncGenerator, AsyncIterator

from alcove.guest.feed import Feed, Message
from alcove.guest.keeping import Keeper
from alcove.guest.processes import Process, Processes, Wanted
from alcove.guest.rpc import Call, Rpc
from alcove.guest.spawn import SpawnError
from alcove.guest.stdin import Input, InputClosedError
from alcove.guest.users import InvalidPathError, User
from alcove.wire import process as wire
from alcove.wire.connect import ConnectError
from alcove.wire.errors import Code
from alcove.wire.process import KEEP_HEADER

_KEEPALIVE: Message = {"event": {"keepalive": {}}}
_DEFAULT_COLS, _DEFAULT_ROWS = 80, 24
# SIGKILL is done when the process is gone: callers look right after. A process that the kernel
# cannot end at once (in an uninterruptible wait) must not hold the call for ever.
_KILL_WAIT_S = 2
_SIGNALS = {"SIGNAL_SIGKILL": signal.SIGKILL, "SIGNAL_SIGTERM": signal.SIGTERM}


class ProcessRpc:
    """The methods of process.Process."""

    def __init__(self, processes: Processes, keeper: Keeper) -> None:
        self._processes = processes
        self._keeper = keeper

    def register(self, rpc: Rpc) -> None:
        rpc.unary(wire.LIST, self._list)
        rpc.server_stream(wire.START, self._start)
        rpc.server_stream(wire.CONNECT, self._connect)
        rpc.unary(wire.UPDATE, self._update)
        rpc.unary(wire.SEND_INPUT, self._send_input)
        rpc.client_stream(wire.STREAM_INPUT, self._stream_input)
        rpc.unary(wire.SEND_SIGNAL, self._send_signal)
        rpc.unary(wire.CLOSE_STDIN, self._close_stdin)

    async def _list(self, _: Message, __: Call) -> Message:
        infos: list[Message] = []
        for process in self._processes.running():
            info: Message = {"config": process.config, "pid": process.pid}
            infos.append(info if process.tag is None else info | {"tag": process.tag})
        return {"processes": infos}

    async def _start(self, message: Message, call: Call) -> AsyncGenerator[Message, None]:
        def make() -> Wanted:
            return _wanted(message, call)

        keep = (KEEP_HEADER, "true") in call.headers
        try:
            process = self._keeper.start(make) if keep else self._processes.start(make())
        except SpawnError as error:
            raise ConnectError(Code.INVALID_ARGUMENT, str(error)) from error
        async for event in _attached(process, process.attach(), call):
            yield event

    async def _connect(self, message: Message, call: Call) -> AsyncGenerator[Message, None]:
        process = self._select(message)
        async for event in _attached(process, process.attach(), call):
            yield event

    async def _update(self, message: Message, _: Call) -> Message:
        process = self._running(message)
        if not process.is_pty:
            raise ConnectError(Code.INTERNAL, f"process {process.pid} has no terminal to resize")
        if "size" in message.get("pty", {}):
            process.resize(*_size(message["pty"]))
        return {}

    async def _send_input(self, message: Message, _: Call) -> Message:
        await _write(self._running(message), message.get("input", {}))
        return {}

    async def _stream_input(self, messages: AsyncIterator[Message], _: Call) -> Message:
        process: Process | None = None
        async for message in messages:
            if "start" in message:
                process = self._running(message["start"])
            elif "data" in message:
                if process is None:
                    raise ConnectError(Code.INVALID_ARGUMENT, "the first message must be 'start'")
                await _write(process, message["data"].get("input", {}))
        return {}

    async def _send_signal(self, message: Message, _: Call) -> Message:
        process = self._running(message)
        number = _SIGNALS.get(message.get("signal", ""))
        if number is None:
            raise ConnectError(
                Code.UNIMPLEMENTED,
                f"signal {message.get('signal')} cannot be sent; use {', '.join(_SIGNALS)}",
            )
        process.kill(number)
        if number == signal.SIGKILL:
            try:
                async with timeout(_KILL_WAIT_S):
                    await process.exited.wait()
            except TimeoutError:
                pass
        return {}

    async def _close_stdin(self, message: Message, _: Call) -> Message:
        process = self._running(message)
        if process.is_pty:
            raise ConnectError(Code.UNKNOWN, "a terminal's input cannot be closed; send it ^D")
        if process.stdin is not None:
            await process.stdin.close()
        return {}

    def _select(self, message: Message) -> Process:
        """The process a selector names, running or just ended. Raises ConnectError NOT_FOUND."""
        selector = message.get("process", {})
        if "pid" in selector:
            process = self._processes.by_pid(selector["pid"])
            name = f"pid {selector['pid']}"
        elif "tag" in selector:
            process = self._processes.by_tag(selector["tag"])
            name = f"tag {selector['tag']}"
        else:
            raise ConnectError(Code.INVALID_ARGUMENT, "name a process by its pid or its tag")
        if process is None:
            raise ConnectError(Code.NOT_FOUND, f"process with {name} not found")
        return process

    def _running(self, message: Message) -> Process:
        process = self._select(message)
        if not process.running:
            raise ConnectError(Code.NOT_FOUND, f"process with pid {process.pid} not found")
        return process


async def _attached(process: Process, feed: Feed, call: Call) -> AsyncGenerator[Message, None]:
    try:
        async for event in feed.messages(call.keepalive_s, _KEEPALIVE):
            yield event
    finally:
        process.detach(feed)


async def _write(process: Process, given: Message) -> None:
    target: Input | None = process.stdin
    kind = "pty" if process.is_pty else "stdin"
    if target is None or kind not in given:
        raise ConnectError(Code.INTERNAL, "stdin not enabled or closed")
    try:
        await target.write(given[kind])
    except InputClosedError as error:
        raise ConnectError(Code.INTERNAL, "stdin not enabled or closed") from error


def _wanted(message: Message, call: Call) -> Wanted:
    config = message.get("process", {})
    command = config.get("cmd")
    if not command:
        raise ConnectError(Code.INVALID_ARGUMENT, "process.cmd is missing")
    user = call.user()
    return Wanted(
        config={"cmd": command, "args": [], "envs": {}} | config,
        argv=[command, *config.get("args", [])],
        env=call.environment.process_env(user, config.get("envs", {})),
        cwd=_cwd(config.get("cwd", ""), user, call),
        user=user,
        tag=message.get("tag"),
        stdin=message.get("stdin", True),
        pty_size=_size(message["pty"]) if "pty" in message else None,
        timeout_ms=call.timeout_ms,
        max_processes=call.environment.max_processes,
    )


def _cwd(asked: str, user: User, call: Call) -> str:
    try:
        path = call.environment.resolve(asked, user)
    except InvalidPathError as error:
        raise ConnectError(Code.INVALID_ARGUMENT, f"cwd: {error}") from error
    if os.path.isdir(path):
        return path
    if not asked:
        return "/"  # nobody asked for the default directory that this image does not have
    if os.path.exists(path):
        raise ConnectError(Code.INVALID_ARGUMENT, f"cwd '{path}' is not a directory")
    raise ConnectError(Code.INVALID_ARGUMENT, f"cwd '{path}' does not exist")


def _size(pty: Message) -> tuple[int, int]:
    size = pty.get("size", {})
    return size.get("cols") or _DEFAULT_COLS, size.get("rows") or _DEFAULT_ROWS

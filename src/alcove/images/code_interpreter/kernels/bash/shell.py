"""One bash that is fed cells, and what it prints while it runs each.

An interactive bash without a terminal: it comes back to its prompt after SIGINT, whatever it did. A
cell is read from a file, so it may be of any size and hold anything; its standard input is empty.
The status comes through a pipe of its own: nothing a cell prints can be taken for its end.
"""

import codecs
import contextlib
import fcntl
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

_PIECE_BYTES = 64 * 1024
_END_S = 1.0
# High, so that it is in the way of no `exec 3>file`.
_STATUS_FD = 240

Emit = Callable[[str, str], None]
"""("stdout" or "stderr", text)"""


class ShellEndedError(Exception):
    """bash ended while it ran a cell."""

    def __init__(self, status: int) -> None:
        super().__init__(f"bash ended with status {status}")
        self.status = status


class Shell:
    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="cell-"))
        self._cell = self._directory / "cell"
        reading, writing = os.pipe()
        status = fcntl.fcntl(writing, fcntl.F_DUPFD, _STATUS_FD)
        os.close(writing)
        # Ignored by a kernel at rest; what bash starts would inherit that and could not be stopped.
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            self._process = _start(status)
        finally:
            signal.signal(signal.SIGINT, before)
            os.close(status)
        self._ends = f"{{ builtin printf '%d\\n' $? >&{status}; }} 2>/dev/null\n".encode()
        self._status_fd = reading
        self._pipes = {
            _fileno(self._process.stdout): ("stdout", _decoder()),
            _fileno(self._process.stderr): ("stderr", _decoder()),
        }
        for descriptor in (reading, *self._pipes):
            os.set_blocking(descriptor, False)
        # What bash says of the terminal it lacks is not output of the first cell.
        self.run("set +o history; unset PS1 PS2; PS1= PS2=", lambda _name, _text: None)

    def run(self, code: str, emit: Emit) -> int:
        """Run a cell; its status. KeyboardInterrupt may be raised anywhere: call `wait` again.

        Raises ShellEndedError.
        """
        self._cell.write_text(code)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f'eval "$(<{self._cell})" </dev/null\n'.encode() + self._ends)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self.wait(emit)

    def wait(self, emit: Emit) -> int:
        """The status of the cell that runs, once it is over. Raises ShellEndedError."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (self._status_fd, *self._pipes):
                selector.register(descriptor, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                for descriptor in ready & self._pipes.keys():
                    if not self._read(descriptor, emit):
                        selector.unregister(descriptor)
                if self._status_fd in ready:
                    said = os.read(self._status_fd, 64)
                    self._drain(emit)
                    if not said:
                        raise self._ended()
                    return int(said.split()[-1])

    def close(self) -> None:
        """End bash; what it has started in the background goes on."""
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._status_fd)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _read(self, descriptor: int, emit: Emit) -> int:
        """Bytes read; 0 when the pipe has ended, -1 when it is empty."""
        name, decoder = self._pipes[descriptor]
        try:
            data = os.read(descriptor, _PIECE_BYTES)
        except BlockingIOError:
            return -1
        if text := decoder.decode(data, final=not data):
            emit(name, text)
        return len(data)

    def _drain(self, emit: Emit) -> None:
        """All that was printed before the status is in the pipes by now."""
        for descriptor in self._pipes:
            # Not for ever: something in the background may print all the time.
            for _ in range(64):
                if self._read(descriptor, emit) <= 0:
                    break

    def _ended(self) -> ShellEndedError:
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return ShellEndedError(status)


def _start(status: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["bash", "--noprofile", "--norc", "--noediting", "-i", "+H"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[status],
        env={**os.environ, "PS1": "", "PS2": "", "TERM": os.environ.get("TERM", "dumb")},
    )


def _fileno(stream: object) -> int:
    assert hasattr(stream, "fileno")
    number = stream.fileno()
    assert isinstance(number, int)
    return number


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")

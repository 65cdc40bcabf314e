"""The log of a sandbox: lifecycle lines, and what its guest wrote to the console.

Kept as JSON lines in <data>/sandboxes/<id>/log.jsonl, so that numbers go on after a restart of the
node; when the file holds twice what is kept, the older half is dropped.
"""

import json
from pathlib import Path

from alcove.wire.node import LogEntry

_KEPT = 1000
_MESSAGE_MAX = 4096
_CONSOLE_READ_MAX = 64 * 1024
_CONSOLE_NAME = "console.log"


class SandboxLog:
    """One sandbox's log. Blocking calls on small files in the page cache."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "log.jsonl"
        self._saved_console = directory / _CONSOLE_NAME
        self._entries: list[LogEntry] = _read(self._path)
        self._last = self._entries[-1].sequence if self._entries else 0

    def add(self, at: float, level: str, message: str, **fields: str) -> None:
        self._last += 1
        entry = LogEntry(self._last, at, level, message[:_MESSAGE_MAX], fields)
        self._entries.append(entry)
        if len(self._entries) > 2 * _KEPT:
            self._entries = self._entries[-_KEPT:]
            self._path.write_text("".join(map(_line, self._entries)))
            return
        with self._path.open("a") as file:
            file.write(_line(entry))

    def after(self, sequence: int) -> list[LogEntry]:
        return [entry for entry in self._entries if entry.sequence > sequence][:_KEPT]

    def save_console(self, console: Path) -> None:
        """Keep the end of the guest's console, before its place goes."""
        try:
            with console.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _CONSOLE_READ_MAX))
                tail = file.read(_CONSOLE_READ_MAX)
        except OSError:
            return
        if tail:
            self._saved_console.write_bytes(tail)


def _line(entry: LogEntry) -> str:
    return json.dumps(entry.to_json(), separators=(",", ":")) + "\n"


def _read(path: Path) -> list[LogEntry]:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    entries = []
    for line in text.splitlines():
        try:
            entries.append(LogEntry.from_json(json.loads(line)))
        except (ValueError, TypeError):
            continue  # a line torn by a crash
    return entries

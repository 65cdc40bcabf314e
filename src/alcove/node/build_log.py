"""The log of a template build: its begin, and when that is long, its end.

Kept as JSON lines in <data>/images/builds/<build id>/log.jsonl. Entries are numbered from 1 without
gaps and none is ever taken back, because clients say how many they have seen. What comes when the
file is full is held back but for the last of it, and written when the build ends.
"""

import json
from collections import deque
from pathlib import Path

from alcove.wire.node import LogEntry

_MESSAGE_MAX = 4096
_HEAD_MAX_BYTES = 1792 << 10
_TAIL_MAX_BYTES = 192 << 10
_LINE_BYTES = 100
_PAGE = 1000

_Held = tuple[float, str, str, dict[str, str]]


class BuildLog:
    """One build's log, 2 MiB at most. Blocking calls on a file in the page cache."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "log.jsonl"
        self._entries: list[LogEntry] = []
        self._bytes = 0
        self._tail: deque[_Held] = deque()
        self._tail_bytes = 0
        self._left_out = 0
        self._read()

    def add(self, at: float, level: str, message: str, **fields: str) -> None:
        message = message[:_MESSAGE_MAX]
        if self._bytes < _HEAD_MAX_BYTES:
            self._write(at, level, message, fields)
            return
        self._tail.append((at, level, message, fields))
        self._tail_bytes += _cost(message)
        while self._tail_bytes > _TAIL_MAX_BYTES:
            self._tail_bytes -= _cost(self._tail.popleft()[2])
            self._left_out += 1

    def finish(self) -> None:
        """The build has ended: what was held back is written, after a word on what is missing."""
        if self._left_out:
            at, _, _, fields = self._tail[0]
            text = f"{self._left_out} lines are left out here: the log of a build holds 2 MiB"
            self._write(at, "warn", text, fields)
        for at, level, message, fields in self._tail:
            self._write(at, level, message, fields)
        self._tail.clear()
        self._tail_bytes = self._left_out = 0

    def after(self, sequence: int) -> list[LogEntry]:
        """The next entries past the first `sequence`, a page of them."""
        return self._entries[sequence : sequence + _PAGE]

    def latest(self) -> LogEntry | None:
        """The newest entry that is for everybody's eyes."""
        if self._tail:
            return LogEntry(len(self._entries) + 1, *self._tail[-1])
        return next((e for e in reversed(self._entries) if e.level != "debug"), None)

    def _write(self, at: float, level: str, message: str, fields: dict[str, str]) -> None:
        entry = LogEntry(len(self._entries) + 1, at, level, message, fields)
        line = json.dumps(entry.to_json(), ensure_ascii=False, separators=(",", ":")) + "\n"
        content = line.encode(errors="replace")
        with self._path.open("ab") as file:
            file.write(content)
        self._entries.append(entry)
        self._bytes += len(content)

    def _read(self) -> None:
        try:
            content = self._path.read_bytes()
        except OSError:
            return
        if content and not content.endswith(b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")
        for line in content.splitlines():
            try:
                found = LogEntry.from_json(json.loads(line))
            except (ValueError, TypeError):
                continue  # a line torn by a crash
            # Numbered anew, so that there is no gap where that line was.
            number = len(self._entries) + 1
            self._entries.append(
                LogEntry(number, found.at, found.level, found.message, found.fields)
            )
        self._bytes = len(content)


def _cost(message: str) -> int:
    """About the bytes that its line takes."""
    return len(message.encode(errors="replace")) + _LINE_BYTES

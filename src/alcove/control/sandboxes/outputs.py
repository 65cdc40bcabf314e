"""What code printed and returned, gathered from the interpreter's stream within bounds. Pure.

The stream has one JSON object a line (contract e2b 6.2). What does not fit is dropped and counted.
"""

import json
from dataclasses import dataclass, field
from typing import Any

MAX_TEXT_CHARS = 1024 * 1024
"""Of each of stdout and stderr."""
MAX_RESULTS_BYTES = 4 * 1024 * 1024
"""Of all results together, as they came: a chart with its data is about 100 KB."""
MAX_STREAM_BYTES = 64 * 1024 * 1024
"""More than this is not read: the execution is ended."""
_MAX_ERROR_CHARS = 64 * 1024


class TooMuchOutputError(Exception):
    """The code printed more than MAX_STREAM_BYTES."""


class NotAnInterpreterError(Exception):
    """What came is not the stream of a code interpreter."""


@dataclass(slots=True)
class Output:
    stdout: str = ""
    stderr: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, str] | None = None
    execution_count: int | None = None
    dropped: dict[str, int] = field(
        default_factory=lambda: {"stdout": 0, "stderr": 0, "results": 0}
    )
    """Characters of the texts, and how many results."""
    ended: bool = False


class Gatherer:
    """Takes the stream as it comes; `output` is what it has told so far."""

    def __init__(self) -> None:
        self.output = Output()
        self._read = 0
        self._line = bytearray()
        self._results_bytes = 0
        self._printed: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._kept = {"stdout": 0, "stderr": 0}
        self._skipping = False

    def feed(self, data: bytes) -> None:
        """Raises TooMuchOutputError, NotAnInterpreterError."""
        self._read += len(data)
        if self._read > MAX_STREAM_BYTES:
            raise TooMuchOutputError
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._extend(part)
            if self._line and not self._skipping:
                self._take(bytes(self._line))
            self._line.clear()
            self._skipping = False
        self._extend(rest)

    def finish(self) -> Output:
        """What was told, the texts in one piece."""
        for name, parts in self._printed.items():
            setattr(self.output, name, "".join(parts))
        return self.output

    def _extend(self, part: bytes) -> None:
        if self._skipping:
            return
        self._line += part
        # One text of the longest kind, escaped to six bytes a character, must fit.
        if len(self._line) > MAX_RESULTS_BYTES + 6 * MAX_TEXT_CHARS:
            self._skipping = True
            self._line.clear()
            self.output.dropped["results"] += 1

    def _take(self, line: bytes) -> None:
        try:
            told = json.loads(line)
            kind = told.pop("type")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise NotAnInterpreterError(line[:200].decode(errors="replace")) from error
        match kind:
            case "stdout" | "stderr":
                self._print(kind, str(told.get("text", "")))
            case "result":
                self._add_result(told, len(line))
            case "error" | "unexpected_end_of_execution":
                self.output.error = {
                    "name": str(told.get("name", "UnexpectedEndOfExecution"))[:_MAX_ERROR_CHARS],
                    "value": str(told.get("value", ""))[:_MAX_ERROR_CHARS],
                    "traceback": str(told.get("traceback", ""))[-_MAX_ERROR_CHARS:],
                }
            case "number_of_executions":
                self.output.execution_count = int(told["execution_count"])
            case "end_of_execution":
                self.output.ended = True
            case _:
                pass  # keepalive, and what later versions add

    def _print(self, name: str, text: str) -> None:
        fits = text[: MAX_TEXT_CHARS - self._kept[name]]
        if fits:
            self._printed[name].append(fits)
            self._kept[name] += len(fits)
        self.output.dropped[name] += len(text) - len(fits)

    def _add_result(self, result: dict[str, Any], size: int) -> None:
        if self._results_bytes + size > MAX_RESULTS_BYTES:
            self.output.dropped["results"] += 1
            return
        self._results_bytes += size
        self.output.results.append(result)

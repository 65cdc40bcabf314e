"""From what kernels say (Jupyter messaging 5.x) to what clients read (contract e2b 6.2)."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

Line = dict[str, Any]

LONGEST_TEXT = 1024 * 1024
"""Characters of output in one line of the answer; more comes in several."""

_FIELDS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_])")

KEEPALIVE: Line = {"type": "keepalive"}
END: Line = {"type": "end_of_execution"}


def encode(line: Line) -> bytes:
    """One line of the answer: ASCII, because a client may cut it anywhere."""
    return json.dumps(line).encode() + b"\n"


def lines(message: Mapping[str, Any]) -> Iterator[Line]:
    """What a client reads of one message on the iopub channel; nothing for most kinds."""
    content = message["content"]
    match message["msg_type"]:
        case "stream":
            yield from _streamed(content, message["header"].get("date"))
        case "execute_result":
            yield result(content.get("data") or {}, is_main=True)
        case "display_data":
            yield result(content.get("data") or {}, is_main=False)
        case "execute_input":
            yield {
                "type": "number_of_executions",
                "execution_count": content.get("execution_count", 0),
            }
        case "error":
            yield kernel_error(content)
        case _:
            pass


def _streamed(content: Mapping[str, Any], date: Any) -> Iterator[Line]:
    kind = "stderr" if content.get("name") == "stderr" else "stdout"
    text = str(content.get("text", ""))
    said = moment(date)
    timestamp = _now() if said is None else said.isoformat()
    for start in range(0, len(text), LONGEST_TEXT):
        yield {"type": kind, "text": text[start : start + LONGEST_TEXT], "timestamp": timestamp}


def moment(date: Any) -> datetime | None:
    """The date in a message's header; None where a kernel sends none that can be read."""
    try:
        return datetime.fromisoformat(date)
    except (TypeError, ValueError):
        return None


def note(text: str) -> Line:
    """Something this server says between the program's own output."""
    return {"type": "stderr", "text": f"[code interpreter] {text}\n", "timestamp": _now()}


def result(data: Mapping[str, Any], *, is_main: bool) -> Line:
    """`data` maps MIME types to contents. Fields without a value are left out."""
    line: Line = {"type": "result", "is_main_result": is_main}
    extra = {}
    for kind, value in data.items():
        if value is None:
            continue
        field = _FIELDS.get(kind)
        if field is None:
            extra[kind] = value
        else:
            line[field] = "".join(value) if _is_multiline(kind, value) else value
    text = line.get("text")
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        line["text"] = text[1:-1]
    if extra:
        line["extra"] = extra
    return line


def _is_multiline(kind: str, value: Any) -> bool:
    """Kernels may send a text as a list of its lines."""
    return kind != "application/json" and isinstance(value, list)


def kernel_error(content: Mapping[str, Any]) -> Line:
    """`content` of an error message or of a failed execute_reply."""
    traceback = content.get("traceback") or []
    return error(
        str(content.get("ename") or ""),
        _ANSI.sub("", str(content.get("evalue") or "")),
        _ANSI.sub("", "\n".join(map(str, traceback))),
    )


def error(name: str, value: str, traceback: str = "") -> Line:
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def _now() -> str:
    return datetime.now(UTC).isoformat()

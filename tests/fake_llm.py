"""A model for tests: an OpenAI-compatible server that reads the conversation and answers from it.

It knows four kinds of task and writes its first code as a hasty model would, without looking at the
data. Shown an error, it reads the error's text and changes the code it names; nothing else makes it
change its mind. So a loop only ends well if the sandbox runs every version and hands every error
back. Deterministic, no network but loopback.
"""

import contextlib
import difflib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "fake-key"
MODEL = "fake-model"

Messages = list[dict[str, Any]]

_BLOCK = re.compile(r"```[\w+-]*\n(.*?)```", re.DOTALL)
_QUESTION = re.compile(r"(\w+) by (\w+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_KEY_ERROR = re.compile(r"KeyError: '(?:Column not found: )?([^']+)'")
_UNKNOWN_PYTHON = re.compile(r"NameError: name '(\w+)' is not defined")
_UNKNOWN_JAVASCRIPT = re.compile(r"ReferenceError: (\w+) is not defined")
_HEADER = re.compile(r"^[^\n,]+(?:,[^\n,]+)+$", re.MULTILINE)
_IMPORTS = {"np": "import numpy as np", "pd": "import pandas as pd", "math": "import math"}
_IMPORTS["statistics"] = "import statistics"

_CHART = """\
import pandas as pd
import matplotlib.pyplot as plt

table = pd.read_csv({path!r})
answer = table.groupby({group!r})[{value!r}].sum()
plt.bar(answer.index, answer.values)
plt.xlabel({group!r})
plt.ylabel({value!r})
plt.title({title!r})
plt.show()
"""
_SHEET = """\
import pandas as pd

book = {path!r}
table = pd.concat(pd.read_excel(book, sheet_name=None).values())
answer = table.groupby({group!r})[{value!r}].sum().reset_index()
with pd.ExcelWriter(book, mode="a", engine="openpyxl") as writer:
    answer.to_excel(writer, sheet_name="Answer", index=False)
answer
"""
_MEAN = """\
numbers = {numbers}
print(f"The mean is {{statistics.mean(numbers):g}}")
"""


def reply(messages: Messages) -> str:
    """What the model says next."""
    asked = str(messages[-1]["content"])
    said = [str(message["content"]) for message in messages if message["role"] != "system"]
    shown = [code for text in said for code in _BLOCK.findall(text)]
    if shown and "Error" in asked:
        return _answer("I misread a name.", _repaired(shown[-1], asked, said[0]))
    question, _, _ = asked.partition("\n")
    words = _QUESTION.search(question)
    path = re.search(r"/[\w./-]+\.(?:csv|xlsx)", asked)
    if words and path:
        code = _CHART if path[0].endswith(".csv") else _SHEET
        return _answer(
            "I add it up.",
            code.format(path=path[0], value=words[1], group=words[2], title=question),
        )
    if "mean" in question:
        numbers = ", ".join(_NUMBER.findall(question))
        return _answer("I use the statistics module.", _MEAN.format(numbers=f"[{numbers}]"))
    return "I do not know."


def _answer(sentence: str, code: str) -> str:
    return f"{sentence}\n\n```\n{code}```\n"


def _repaired(code: str, error: str, task: str) -> str:
    if (found := _KEY_ERROR.search(error)) is not None:
        columns = [name for line in _HEADER.findall(task) for name in line.split(",")]
        return _renamed(code, found[1], columns)
    unknown = _UNKNOWN_PYTHON.search(error) or _UNKNOWN_JAVASCRIPT.search(error)
    if unknown is None:
        return code
    if unknown[1] in _IMPORTS:
        return f"{_IMPORTS[unknown[1]]}\n{code}"
    others = [name for name in re.findall(r"\b[A-Za-z_]\w*\b", code) if name != unknown[1]]
    return _renamed(code, unknown[1], others)


def _renamed(code: str, wrong: str, candidates: list[str]) -> str:
    def alikeness(name: str) -> float:
        return difflib.SequenceMatcher(None, wrong.lower(), name.lower().strip()).ratio()

    best = max(candidates, key=alikeness, default=wrong)
    return re.sub(rf"\b{re.escape(wrong)}\b", best.strip(), code)


@dataclass
class FakeLlm:
    """`conversations` has what every request said."""

    url: str
    conversations: list[Messages] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"LLM_BASE_URL": self.url, "LLM_API_KEY": KEY, "LLM_MODEL": MODEL}


@contextlib.contextmanager
def fake_llm() -> Iterator[FakeLlm]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    llm = FakeLlm(f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.llm = llm  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield llm
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": f"no such path: {self.path}"}})
        elif self.headers["Authorization"] != f"Bearer {KEY}":
            self._send(401, {"error": {"message": "wrong key"}})
        elif body.get("model") != MODEL or body.get("stream"):
            self._send(400, {"error": {"message": "one model, and it does not stream"}})
        else:
            self._answer(body["messages"])

    def _answer(self, messages: Messages) -> None:
        conversations = self.server.llm.conversations  # type: ignore[attr-defined]
        conversations.append(messages)
        said = {"role": "assistant", "content": reply(messages)}
        self._send(
            200,
            {
                "id": f"chatcmpl-{len(conversations)}",
                "object": "chat.completion",
                "created": 0,
                "model": MODEL,
                "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            },
        )

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests say enough."""

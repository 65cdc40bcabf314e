"""Programs that run inside measured sandboxes and tell what they lived through.

The keeper holds random bytes and a word in its memory and answers over HTTP; whoever gets the right
answer after a pause, a fork or a rollback speaks to that very memory. The watch notes every moment
in which it did not run.
"""

import secrets
import time
from dataclasses import dataclass
from typing import Any

from alcove.cli.bench.series import expect

HOME = "/home/user"
KEEPER_PORT = 8000
GAP_MS = 5.0
_START_LIMIT_S = 120

_KEEPER = """
import hashlib, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

memory = bytearray(int(sys.argv[1]))
for at in range(0, len(memory), 1 << 20):
    memory[at : at + (1 << 20)] = os.urandom(min(1 << 20, len(memory) - at))
kept = {"word": sys.argv[2]}

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        what, _, rest = self.path.strip("/").partition("/")
        if what == "sum":
            text = hashlib.sha256(memory).hexdigest()
        elif what == "set":
            kept["word"] = text = rest
        else:
            text = kept["word"] + " " + rest
        body = text.encode() + b"\\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("0.0.0.0", %d), Answer).serve_forever()
""" % (KEEPER_PORT,)  # noqa: UP031 - a program with braces of its own

_WATCH = """
import time
out = open("%s/gaps", "a", buffering=1)
last = time.monotonic()
while True:
    time.sleep(0.001)
    now = time.monotonic()
    if (now - last) * 1000 > %g:
        out.write(f"{(now - last) * 1000:.3f}\\n")
    last = now
""" % (HOME, GAP_MS)  # noqa: UP031 - a program with braces of its own

# bash alone, so that nothing is started but the shell that every command gets.
_ASK = (
    "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /{path}\\n\\n' >&3;"
    " read -r answer <&3; echo $answer"
)


@dataclass(frozen=True, slots=True)
class Keeper:
    """A keeper in one sandbox, and what it must answer."""

    word: str
    sum: str


def keep(sandbox: Any, size_bytes: int) -> Keeper:
    """Start a keeper with that many random bytes and ask for their checksum."""
    word = secrets.token_hex(8)
    sandbox.files.write(f"{HOME}/keeper.py", _KEEPER)
    sandbox.commands.run(
        f"exec python3 {HOME}/keeper.py {size_bytes} {word}", background=True, timeout=0
    ).disconnect()
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        listening = sandbox.commands.run(f"ss -ltnH sport = :{KEEPER_PORT}").stdout
        if listening:
            return Keeper(word, ask(sandbox, "sum"))
        if time.monotonic() > deadline:
            raise RuntimeError("the keeper did not start inside the sandbox")
        time.sleep(0.05)


def ask(sandbox: Any, path: str) -> str:
    """What the sandbox's keeper answers to a command inside."""
    command = _ASK.format(port=KEEPER_PORT, path=path)
    answer: str = sandbox.commands.run(command, timeout=_START_LIMIT_S).stdout
    return answer.rstrip("\n")


def expect_word(sandbox: Any, keeper: Keeper) -> None:
    """Raise unless a command inside gets the keeper's word, with a nonce of this moment."""
    nonce = secrets.token_hex(8)
    expect("the keeper's word", ask(sandbox, f"word/{nonce}"), f"{keeper.word} {nonce}")


def expect_memory(sandbox: Any, keeper: Keeper) -> None:
    """Raise unless every byte of the keeper's memory is as it was."""
    expect("checksum of the memory", ask(sandbox, "sum"), keeper.sum)


def watch(sandbox: Any) -> None:
    """Start a program that sleeps 1 ms at a time and notes when it took GAP_MS or more."""
    sandbox.files.write(f"{HOME}/watch.py", _WATCH)
    sandbox.commands.run(f"exec python3 {HOME}/watch.py", background=True, timeout=0).disconnect()


def forget_gaps(sandbox: Any) -> None:
    sandbox.files.write(f"{HOME}/gaps", "")


def gaps_ms(sandbox: Any) -> list[float]:
    """What the watch noted since the gaps were last forgotten."""
    text: str = sandbox.files.read(f"{HOME}/gaps")
    return [float(line) for line in text.split()]

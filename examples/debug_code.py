"""Debug a program: run it, let a model analyse what goes wrong, run its fix, until it works.

    python examples/debug_code.py broken.py

Prints the program that works.
"""

import sys
from pathlib import Path

from e2b_code_interpreter import Sandbox
from llm import Chat

ROUNDS = 5
INSTRUCTIONS = (
    "You debug Python programs. Say in a sentence what is wrong, then give the whole fixed program "
    "in one code block. Change nothing else."
)


def debug(code: str) -> str:
    chat = Chat(INSTRUCTIONS)
    with Sandbox.create() as sandbox:
        for _ in range(ROUNDS):
            execution = sandbox.run_code(code)
            if execution.error is None:
                return code
            print(f"{execution.error.name}: {execution.error.value}", file=sys.stderr)
            code = chat.ask_for_code(
                f"This program:\n```python\n{code}```\nfails:\n{execution.error.traceback}"
            )
    raise SystemExit("it still fails")


if __name__ == "__main__":
    print(debug(Path(sys.argv[1]).read_text()), end="")

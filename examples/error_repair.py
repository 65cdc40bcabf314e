"""Let a model write code, run it, and show it every error until the code works.

python examples/error_repair.py "What is the mean of 3, 5 and 10?"
"""

import sys

from e2b_code_interpreter import Execution, Sandbox
from llm import Chat

ATTEMPTS = 5
INSTRUCTIONS = (
    "You solve tasks with Python code that runs in a notebook. Answer with one code block. "
    "When you are shown an error, answer with the whole repaired code."
)


def solve(sandbox: Sandbox, chat: Chat, task: str) -> Execution:
    """The first run without an error; the last failed one after ATTEMPTS."""
    code = chat.ask_for_code(task)
    for attempt in range(1, ATTEMPTS + 1):
        execution = sandbox.run_code(code)
        if execution.error is None:
            print(f"attempt {attempt}: works")
            return execution
        print(f"attempt {attempt}: {execution.error.name}: {execution.error.value}")
        if attempt < ATTEMPTS:
            code = chat.ask_for_code(f"The code failed:\n{execution.error.traceback}")
    return execution


if __name__ == "__main__":
    with Sandbox.create() as sandbox:
        done = solve(sandbox, Chat(INSTRUCTIONS), " ".join(sys.argv[1:]))
        print("".join(done.logs.stdout), done.text or "", sep="")
        if done.error is not None:
            sys.exit("no code worked")

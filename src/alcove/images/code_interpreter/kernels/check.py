"""Starts an installed kernel and runs one cell; ends with 1 if that does not work.

check.py NAME
"""

import sys

from jupyter_client.manager import start_new_kernel

_LIMIT_S = 120
_CELL = {
    "python3": "print('ready')",
    "javascript": "console.log('ready')",
    "typescript": "console.log('ready' as string)",
    "bash": "echo ready",
    "ir": "cat('ready\\n')",
    "java": 'System.out.println("ready");',
}


def main(name: str) -> None:
    said: list[str] = []

    def hear(message: dict[str, object]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream" and isinstance(content, dict):
            said.append(content["text"])

    manager, client = start_new_kernel(kernel_name=name, startup_timeout=_LIMIT_S)
    try:
        client.execute_interactive(_CELL[name], timeout=_LIMIT_S, output_hook=hear)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if "".join(said) != "ready\n":
        sys.exit(f"kernel {name} answered {said}")


if __name__ == "__main__":
    main(sys.argv[1])

"""A sandbox of the code interpreter's template, made by its official client."""

import time

from e2b_code_interpreter import Sandbox

from stack import alcove

_BUILT_S = 1500
TEMPLATE = "code-interpreter-v1"


def make_interpreter(timeout: int = 1800) -> Sandbox:
    """Waits for the template, which is built in the background after the stack has come up."""
    until = time.monotonic() + _BUILT_S
    while "ready" not in _state():
        assert "error" not in _state(), _state()
        assert time.monotonic() < until, _state()
        time.sleep(2)
    return Sandbox.create(timeout=timeout)


def _state() -> str:
    lines = alcove("status").splitlines()
    return next((line for line in lines if TEMPLATE in line), "")

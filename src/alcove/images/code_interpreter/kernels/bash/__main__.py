"""A Jupyter kernel for bash: python3 -m alcove_bash -f CONNECTION_FILE

Standard output and error stay two streams, a failed cell is an error with its status (and an empty
name, as clients of the original platform know it), an unfinished cell is a mistake and no wait.
"""

from typing import Any

import zmq
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

from .shell import Emit, Shell, ShellEndedError


class BashKernel(Kernel):
    implementation = "alcove-bash"
    implementation_version = "1"
    language_info = {  # noqa: RUF012 - ipykernel declares it for an instance
        "name": "bash",
        "mimetype": "text/x-sh",
        "file_extension": ".sh",
    }
    banner = "bash"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]  # ipykernel has no types
        # At its limit ZeroMQ throws output away (kernel/sending.py).
        self.iopub_thread.socket.setsockopt(zmq.SNDHWM, 0)
        self._shell = Shell()

    def do_execute(
        self,
        code: str,
        silent: bool,
        *_options: Any,
        **_more: Any,
    ) -> dict[str, Any]:
        def emit(name: str, text: str) -> None:
            if not silent:
                self._publish("stream", {"name": name, "text": text})

        try:
            status = self._run(code, emit)
        except ShellEndedError as error:
            self._shell.close()
            self._shell = Shell()
            name, value = "ShellEnded", f"{error}; the next cell runs in a new one"
            return self._failed(silent, name, value)
        if status != 0:
            return self._failed(silent, "", str(status))
        count = self.execution_count
        return {"status": "ok", "execution_count": count, "payload": [], "user_expressions": {}}

    def do_shutdown(self, restart: bool) -> dict[str, Any]:
        self._shell.close()
        return {"status": "ok", "restart": restart}

    def _publish(self, kind: str, content: dict[str, Any]) -> None:
        self.send_response(self.iopub_socket, kind, content)  # type: ignore[no-untyped-call]  # as above

    def _run(self, code: str, emit: Emit) -> int:
        try:
            return self._shell.run(code, emit)
        except KeyboardInterrupt:
            pass
        # The whole process group got the signal; bash is on its way back to its prompt.
        while True:
            try:
                return self._shell.wait(emit)
            except KeyboardInterrupt:
                continue

    def _failed(self, silent: bool, name: str, value: str) -> dict[str, Any]:
        content = {"ename": name, "evalue": value, "traceback": []}
        if not silent:
            self._publish("error", content)
        return {"status": "error", "execution_count": self.execution_count, **content}


if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=BashKernel)

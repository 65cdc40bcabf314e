"""A real Python kernel with the extension loaded, as the template starts it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2b_code_interpreter.charts import _deserialize_chart
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).parents[4]
KERNEL = ROOT / "src/alcove/images/code_interpreter/kernel"
PATIENCE_S = 60


@dataclass
class Cell:
    """What running one cell gave, as the kernel said it."""

    results: list[dict[str, Any]] = field(default_factory=list)
    main: list[bool] = field(default_factory=list)
    stdout: str = ""
    pieces: list[int] = field(default_factory=list)
    """Lengths of the messages that brought stdout."""
    stderr: str = ""
    error: dict[str, Any] | None = None
    order: list[tuple[str, Any]] = field(default_factory=list)
    """All that came, pieces of one stream that follow each other as one."""

    def note(self, kind: str, value: Any) -> None:
        if kind in {"stdout", "stderr"} and self.order and self.order[-1][0] == kind:
            value = self.order.pop()[1] + value
        self.order.append((kind, value))

    @property
    def only(self) -> dict[str, Any]:
        """The one result; the cell had no error and wrote nothing to stderr."""
        assert self.error is None, self.error
        assert self.stderr == ""
        (result,) = self.results
        return result

    @property
    def chart(self) -> Any:
        """The chart of the one result, read by the official client."""
        return _deserialize_chart(self.only["e2b/chart"])


class Room:
    def __init__(self, client: BlockingKernelClient, manager: KernelManager) -> None:
        self._client = client
        self._manager = manager

    def run(self, code: str, interrupt_after: int = 0) -> Cell:
        """`interrupt_after`: so many pieces of standard output; 0: never."""
        cell = Cell()

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            match message["msg_type"]:
                case "execute_result" | "display_data" as kind:
                    cell.note(kind, content["data"])
                    cell.results.append(content["data"])
                    cell.main.append(message["msg_type"] == "execute_result")
                case "stream" if content["name"] == "stdout":
                    cell.note("stdout", content["text"])
                    cell.stdout += content["text"]
                    cell.pieces.append(len(content["text"]))
                    if len(cell.pieces) == interrupt_after:
                        self._manager.interrupt_kernel()
                case "stream":
                    cell.note("stderr", content["text"])
                    cell.stderr += content["text"]
                case "error":
                    cell.error = content

        self._client.execute_interactive(
            code, allow_stdin=False, output_hook=hear, timeout=PATIENCE_S
        )
        return cell


@contextlib.contextmanager
def kernel_room(folder: Path) -> Iterator[Room]:
    """`folder`: for everything the kernel needs and leaves."""
    profile = folder / "ipython/profile_default"
    profile.mkdir(parents=True)
    shutil.copy(KERNEL / "config/ipython_kernel_config.py", profile)
    (folder / "alcove_kernel").symlink_to(KERNEL)
    environment = os.environ | {
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    manager = KernelManager(
        kernel_name="python3", connection_file=str(folder / "kernel.json"), transport="ipc"
    )
    manager.start_kernel(cwd=str(folder), env=environment)
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=PATIENCE_S)
        yield Room(client, manager)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

"""What differs between a sandbox and a test of this server."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    run_dir: Path
    """Connection files and sockets of the kernels, and the list of contexts; only root may look."""
    workdir: str
    """Where contexts start that name no directory."""
    envd_port: int
    """Of the sandbox's agent, which knows the sandbox's variables."""
    warm: tuple[str, ...]
    """Languages whose default context has a kernel before /health says OK."""

    @property
    def socket(self) -> Path:
        """The same server for programs in the sandbox: no connection that a snapshot has to cut."""
        return self.run_dir.with_suffix(".sock")

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        return cls(
            run_dir=Path(environ.get("CODE_INTERPRETER_RUN_DIR", "/run/code-interpreter")),
            workdir=environ.get("CODE_INTERPRETER_WORKDIR", "/home/user"),
            envd_port=int(environ.get("CODE_INTERPRETER_ENVD_PORT", "49983")),
            warm=tuple(environ.get("CODE_INTERPRETER_WARM", "python").split()),
        )

"""Runs a template's start command and waits until its ready command says that it serves."""

import asyncio
import shlex
import time
from collections.abc import Callable

from alcove.node.guest_commands import Finished, GuestCommands
from alcove.node.origins import Startup

_STARTED_S = 60.0
_READY_PERIOD_S = 2.0


async def run(
    commands: GuestCommands, startup: Startup, say: Callable[[str], None], limit_s: float
) -> Finished | None:
    """Return once it is ready; the last answer of the ready command if it never was in the time.

    Raises GuestError.
    """
    if startup.start_command:
        say(f"Running start command: {startup.start_command}")
        environment = "".join(
            f"export {name}={shlex.quote(value)}; " for name, value in startup.env.items()
        )
        command = f"cd {shlex.quote(startup.workdir)}; {environment}{startup.start_command}"
        await commands.start(command, startup.user, _STARTED_S)
    if not startup.ready_command:
        return None
    say(f"Waiting for template to be ready: {startup.ready_command}")
    deadline = time.monotonic() + limit_s
    while (last := await commands.run(startup.ready_command, startup.user, limit_s)).exit_code:
        if time.monotonic() > deadline:
            return last
        await asyncio.sleep(_READY_PERIOD_S)
    say("Template is ready")
    return None

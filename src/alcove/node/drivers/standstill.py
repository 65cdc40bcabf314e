"""Whether the programs of a sandbox run or stand still, as its kernel says.

Nothing is written down: a second "resume" would end a sandbox that runs (gVisor counts them), so
after a crash the sandbox is asked instead of a file that may be a step behind.
"""

from alcove.concurrency import uninterrupted
from alcove.node.drivers import runsc, urpc
from alcove.node.drivers.driver import DriverError, Place
from alcove.node.drivers.runsc import Runsc

_LIMIT_S = 10.0
_TASK, _STOPPED = "kernel.(*Task).run(", "kernel.(*Task).doStop("
"""In the stack of every task's goroutine, and of those that were told to stop."""


async def pause(place: Place, program: Runsc, *, direct: bool) -> None:
    """Let nothing inside run until resume(). Raises DriverError, and then everything runs."""
    await uninterrupted(_pause(place, program, direct=direct))


async def resume(place: Place, program: Runsc, *, direct: bool) -> None:
    """Let everything run that pause() stopped; may be repeated. Raises DriverError."""
    await uninterrupted(_resume(place, program, direct=direct))


async def _pause(place: Place, program: Runsc, *, direct: bool) -> None:
    if await _stands_still(place, program, direct=direct):
        return
    if direct:
        await _call(place, "containerManager.Pause")
    else:
        await program.pause(place)


async def _resume(place: Place, program: Runsc, *, direct: bool) -> None:
    if not await _stands_still(place, program, direct=direct):
        return
    if direct:
        await _call(place, "containerManager.Resume")
    else:
        await program.resume(place)


async def _stands_still(place: Place, program: Runsc, *, direct: bool) -> bool:
    if not direct:
        return await program.status(place) == "paused"
    stacks = str(await _call(place, "debug.Stacks")).split("\n\n")
    tasks = [stack for stack in stacks if _TASK in stack]
    return bool(tasks) and all(_STOPPED in stack for stack in tasks)


async def _call(place: Place, method: str) -> object:
    try:
        answer: object = await urpc.call(
            runsc.control_socket(place), method, None, timeout_s=_LIMIT_S
        )
    except urpc.UrpcError as error:
        raise DriverError(f"{place.name}: {error}") from error
    return answer

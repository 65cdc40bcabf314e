"""Control groups on the kernel of this machine: version 1, and the version 2 tree beside it."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alcove.node import pidfd
from alcove.node.cgroups import Cgroup, CgroupError, Limits

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

MIB = 1 << 20
UNIFIED = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
MOUNTS = list(
    dict.fromkeys(
        [
            Path("/sys/fs/cgroup"),
            *[mount for mount in UNIFIED if (mount / "cgroup.controllers").exists()],
        ]
    )
)


@pytest.fixture(params=MOUNTS, ids=str)
def group(request: pytest.FixtureRequest) -> Iterator[Cgroup]:
    group = Cgroup(f"nd-unit/{os.getpid()}", request.param)
    group.create()
    yield group
    asyncio.run(group.remove())
    asyncio.run(Cgroup("nd-unit", request.param).remove())


@pytest.fixture
def limited() -> Iterator[Cgroup]:
    group = Cgroup(f"nd-limits/{os.getpid()}")
    if missing := group.missing_controllers():
        pytest.skip("; ".join(missing))
    group.create()
    group.limit(Limits(memory_bytes=64 * MIB, cpu_count=1, pids=20))
    yield group
    asyncio.run(group.remove())
    asyncio.run(Cgroup("nd-limits").remove())


# kill() reaps children itself; when it is first, asyncio only knows that the process is gone.
REAPED = {-9, 255}


async def spawn(group: Cgroup, code: str) -> asyncio.subprocess.Process:
    """A Python process in the group that has said "ready"."""
    entries = [str(file) for file in group.entry_files()]
    enter = f"for entry in {entries!r}: open(entry, 'w').write('0')\n"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-Sc",
        f"{enter}{code}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    return process


WAIT = "print('ready', flush=True); input()"
FORK = "import os; os.fork() or os.fork(); print('ready', flush=True)\nwhile True: input()"


def test_what_may_be_repeated(group: Cgroup) -> None:
    group.create()
    assert group.exists()
    assert group.procs() == []
    asyncio.run(group.remove())
    asyncio.run(group.remove())
    assert not group.exists()


def test_kill_ends_every_process(group: Cgroup) -> None:
    async def scenario() -> None:
        process = await spawn(group, FORK)
        assert len(group.procs()) >= 2
        await group.kill()
        assert group.procs() == []
        assert await process.wait() in REAPED

    asyncio.run(scenario())


def test_kill_ends_frozen_processes(group: Cgroup) -> None:
    async def scenario() -> None:
        process = await spawn(group, WAIT)
        await group.freeze()
        await group.kill()
        assert group.procs() == []
        assert await process.wait() in REAPED

    asyncio.run(scenario())


def test_a_frozen_process_answers_after_the_thaw(group: Cgroup) -> None:
    async def scenario() -> None:
        process = await spawn(group, "print('ready', flush=True)\nwhile True: print(input())")
        assert process.stdin is not None
        assert process.stdout is not None
        await group.freeze()
        process.stdin.write(b"hello\n")
        answer = asyncio.ensure_future(process.stdout.readline())
        done, _ = await asyncio.wait([answer], timeout=0.1)
        assert not done
        group.thaw()
        assert await answer == b"hello\n"
        await group.kill()
        await process.wait()

    asyncio.run(scenario())


def test_children_are_listed(group: Cgroup) -> None:
    assert os.path.basename(group.path) in Cgroup("nd-unit", _mount(group)).children()  # noqa: PTH119


def _mount(group: Cgroup) -> Path:
    return next(
        mount for mount in MOUNTS if Cgroup(group.path, mount).entry_files() == group.entry_files()
    )


def test_memory_has_a_limit_and_its_breach_is_counted(limited: Cgroup) -> None:
    async def scenario() -> None:
        code = "print('ready', flush=True); x = b'x' * (200 << 20); print('survived')"
        process = await spawn(limited, code)
        assert await process.wait() == -9
        assert limited.oom_kills() == 1

    asyncio.run(scenario())


def test_a_limit_can_be_raised_and_lowered(limited: Cgroup) -> None:
    for mib in (256, 64, 128):
        limited.limit_memory(mib * MIB)
        assert limited.memory_limit() == mib * MIB


def test_processes_have_a_limit(limited: Cgroup) -> None:
    async def scenario() -> None:
        code = (
            "import os\nprint('ready', flush=True)\n"
            "try:\n  while os.fork(): pass\nexcept OSError: print('refused', flush=True)\n"
            "input()"
        )
        process = await spawn(limited, code)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"refused\n"
        assert 10 < len(limited.procs()) <= 20
        await limited.kill()
        await process.wait()

    asyncio.run(scenario())


def test_usage_counts_memory_and_time(limited: Cgroup) -> None:
    async def scenario() -> None:
        code = "x = b'x' * (32 << 20); sum(range(3_000_000)); print('ready', flush=True); input()"
        process = await spawn(limited, code)
        usage = limited.usage()
        assert 32 * MIB <= usage.memory_used <= 64 * MIB
        assert usage.cpu_seconds > 0.01
        await limited.kill()
        await process.wait()

    asyncio.run(scenario())


def test_usage_of_nothing_is_an_error(limited: Cgroup) -> None:
    asyncio.run(limited.remove())
    with pytest.raises(CgroupError):
        limited.usage()


def test_rising_memory_is_announced(limited: Cgroup) -> None:
    async def scenario() -> None:
        code = "print('ready', flush=True); input(); x = b'x' * (40 << 20); input()"
        process = await spawn(limited, code)
        above = limited.memory_above(32 * MIB)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(anext(above))
            await asyncio.sleep(0)
            assert not first.done()
            assert process.stdin is not None
            process.stdin.write(b"grow\n")
        assert first.result() >= 32 * MIB
        await above.aclose()
        await limited.kill()
        await process.wait()

    asyncio.run(scenario())


def test_reaping_takes_only_what_it_is_told() -> None:
    other = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 4"], {})

    async def scenario() -> None:
        ours = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
        fd = os.pidfd_open(other)
        try:
            await pidfd.ended(fd)
            assert pidfd.reap(fd) == "exit 4"
            assert pidfd.reap(fd) is None
        finally:
            os.close(fd)
        assert await ours.wait() == 3

    asyncio.run(scenario())

"""Pause and resume by the size of a sandbox's memory, beside raw checkpoint and restore of it."""

import asyncio
import secrets
from typing import Any

from alcove.cli.bench import raw, witness
from alcove.cli.bench.series import Series, expect, milliseconds, verified
from alcove.cli.bench.workbench import Workbench
from alcove.wire.hosts import GUEST_PORT

MB = 1000 * 1000


def pause_and_resume(bench: Workbench, sizes_mb: tuple[int, ...], rounds: int) -> list[Series]:
    """For each size: rounds of pause, raw restore and checkpoint of the same, resume."""
    measured: list[Series] = []
    for size_mb in sizes_mb:
        measured += _rounds(bench, size_mb, rounds)
    return measured


def _rounds(bench: Workbench, size_mb: int, rounds: int) -> list[Series]:
    held = f"{size_mb} MB"
    pause = Series(f"pause, {held}", "ms", note="pause() to its answer; nothing runs any more")
    health = Series(f"resume to health, {held}", "ms", note="connect() to GET /health by the edge")
    command = Series(f"resume, {held}", "ms", note="connect() to the output of the first command")
    floors = raw.SnapshotFloors(held)
    sandbox = bench.sandbox()
    try:
        keeper = witness.keep(sandbox, size_mb * MB)
        for turn in range(2 * rounds):
            with milliseconds(pause):
                expect("pause", sandbox.pause(), wanted=True)
            snapshot = bench.snapshots_of(sandbox.sandbox_id)[-1]
            image = raw.image_of(bench.installation, snapshot["snapshot_id"])
            asyncio.run(floors.measure(image, bench.installation.data_dir))
            resumed = health if turn % 2 else command
            if resumed is health:
                _resume_to_health(bench, health, sandbox)
            else:
                _resume_to_command(command, sandbox)
            with verified(resumed):
                witness.expect_memory(sandbox, keeper)
    finally:
        sandbox.kill()
    return [pause, floors.checkpoint, floors.on_disk, health, command, floors.restore]


def _resume_to_command(series: Series, sandbox: Any) -> None:
    from e2b import Sandbox

    nonce = secrets.token_hex(8)
    with milliseconds(series):
        resumed = Sandbox.connect(sandbox.sandbox_id)
        expect("echo", resumed.commands.run(f"echo {nonce}").stdout, f"{nonce}\n")


def _resume_to_health(bench: Workbench, series: Series, sandbox: Any) -> None:
    from e2b import Sandbox

    with milliseconds(series):
        Sandbox.connect(sandbox.sandbox_id)
        expect("GET /health", bench.ask_port(sandbox.sandbox_id, GUEST_PORT, "/health")[0], 204)

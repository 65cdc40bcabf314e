"""What builds print is written down by control, and outlives the machine that built."""

from typing import Any

from control_fixture import InWorld, in_world
from control_world import World
from sqlalchemy import func, select
from test_control_builds import build, follow, request, start, status

from alcove.control.nodes.client import NodeUnreachableError
from alcove.control.templates.tables import template_build_logs
from alcove.wire.node import LogEntry

__all__ = ["in_world"]

USUAL = ["packages done", "provision done", "snapshot done"]


async def begin(world: World, lines: list[LogEntry] | None = None) -> dict[str, Any]:
    """A build under way."""
    world.node.build_at_once = False
    made = await request(world)
    assert (await start(world, made)).status_code == 202
    if lines is not None:
        world.node.lines[made["buildID"]] = lines
    await follow(world)
    return made


def said(count: int, levels: str = "info") -> list[LogEntry]:
    chosen = levels.split()
    return [
        LogEntry(number, 1000.0 + number, chosen[number % len(chosen)], f"line {number}", {})
        for number in range(1, count + 1)
    ]


async def messages(world: World, made: dict[str, Any], **query: Any) -> list[str]:
    """The log as the SDKs read it: from what was seen, until nothing more comes."""
    found: list[str] = []
    while page := (await status(world, made, logsOffset=len(found), **query))["logEntries"]:
        found += [entry["message"] for entry in page]
    return found


async def kept(world: World) -> int:
    async with world.app.state.db.reading() as tx:
        counted = select(func.count()).select_from(template_build_logs)
        return int((await tx.execute(counted)).scalar_one())


def test_the_log_outlives_the_machine_and_goes_with_the_build(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        shipped = await kept(world)
        made = await build(world)
        calls = world.node.calls["image_logs"]
        assert await messages(world, made) == USUAL
        # The machine was not asked again: all was written down before the build was ready.
        assert world.node.calls["image_logs"] == calls
        world.node.built.clear()
        world.node.reachable = False
        assert await messages(world, made) == USUAL
        world.node.reachable = True
        assert (await world.http.delete(f"/templates/{made['templateID']}")).status_code == 204
        assert await kept(world) == shipped > 0

    in_world(scenario)


def test_lines_are_read_while_they_come_and_none_is_written_twice(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        made = await begin(world, said(2))
        assert await messages(world, made) == ["line 1", "line 2"]
        world.node.lines[made["buildID"]] = said(1205)
        await follow(world)
        world.node.lines[made["buildID"]] = said(2301)
        assert await messages(world, made) == [f"line {n}" for n in range(1, 2302)]
        world.node.reachable = False
        assert len(await messages(world, made)) == 2301
        world.node.reachable = True
        world.node.finish_build(made["buildID"], reason="exit status 1", step="1")
        world.node.lines[made["buildID"]] = said(2302)
        await follow(world)
        await world.restart()
        del world.node.built[made["buildID"]]
        assert (await status(world, made))["status"] == "error"
        assert len(await messages(world, made)) == 2302

    in_world(scenario)


def test_an_end_is_not_written_down_before_the_log_is(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        made = await begin(world)
        world.node.finish_build(made["buildID"])
        world.node.fail["image_logs"] = NodeUnreachableError("cut off")
        await follow(world)
        assert (await status(world, made))["status"] == "building"
        del world.node.fail["image_logs"]
        await follow(world)
        assert (await status(world, made))["status"] == "ready"
        del world.node.built[made["buildID"]]
        assert await messages(world, made) == USUAL

    in_world(scenario)


def test_a_cancelled_build_keeps_its_log(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        made = await begin(world, said(3))
        path = f"/templates/{made['templateID']}/builds/{made['buildID']}"
        assert (await world.http.post(f"/v1{path}/cancel")).status_code == 204
        assert (await status(world, made))["reason"]["message"] == "the build was cancelled"
        await follow(world)
        assert made["buildID"] not in world.node.built
        assert await messages(world, made) == ["line 1", "line 2", "line 3"]
        # Nothing to cancel any more, and no harm.
        assert (await world.http.post(f"/v1{path}/cancel")).status_code == 204

    in_world(scenario)


def test_levels_moments_and_directions(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        lines = said(8, "debug info warn error")
        lines.append(LogEntry(9, 1009.0, "odd", "of no known level, with a \x00", {}))
        made = await begin(world, lines)
        assert len(await messages(world, made)) == 9
        assert await messages(world, made, level="warn", limit=1) == [
            *("line 2", "line 3", "line 6", "line 7")
        ]
        assert (await messages(world, made, level="info"))[-1] == "of no known level, with a \ufffd"
        path = f"/templates/{made['templateID']}/builds/{made['buildID']}/logs"

        async def logs(**query: Any) -> list[str]:
            answer = await world.http.get(path, params=query)
            assert answer.status_code == 200, answer.text
            return [entry["message"] for entry in answer.json()["logs"]]

        assert await logs(cursor=1_007_000, level="error") == ["line 7"]
        assert await logs(cursor=1_003_000, direction="backward", limit=2) == ["line 3", "line 2"]
        assert await logs(cursor=2**63 - 1) == []
        assert await logs(limit=0) == []

    in_world(scenario)

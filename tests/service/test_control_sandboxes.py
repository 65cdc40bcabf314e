"""Sandboxes through the API: create, read, list, prolong, kill (contract e2b 2.4 to 2.8)."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from control_fixture import InWorld, in_world
from control_world import World

from alcove.control.nodes.client import (
    NodeFullError,
    NodeImageError,
    NodeRefusedError,
    NodeTimeoutError,
    NodeUnreachableError,
)
from alcove.wire.ids import SandboxId
from alcove.wire.states import StopReason

__all__ = ["in_world"]

ABSENT = "i" + "0" * 20


def seconds_left(world: World, sandbox: dict[str, Any]) -> float:
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=world.clock.at)
    return (datetime.fromisoformat(sandbox["endAt"]) - now).total_seconds()


async def ids(world: World, query: str = "") -> list[str]:
    answer = await world.http.get(f"/v2/sandboxes{query}")
    assert answer.status_code == 200, answer.text
    return [sandbox["sandboxID"] for sandbox in answer.json()]


def test_a_created_sandbox_has_what_clients_need_and_runs_on_the_node(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        answer = await world.http.post(
            "/v2/sandboxes",
            json={"templateID": "base", "metadata": {"k": "v"}, "envVars": {"A": "1"}},
        )
        assert answer.status_code == 201
        made = answer.json()
        assert made["clientID"]
        assert made["alias"] == "base"
        assert made["envdVersion"] == "0.6.13"
        assert made["domain"] == "alcove.localhost"
        assert made["trafficAccessToken"] is None
        spec = world.node.specs[made["sandboxID"]]
        assert spec.access_token == made["envdAccessToken"]
        assert spec.env_vars == {"A": "1"}
        assert spec.internet
        assert spec.generation == 1
        shown = (await world.http.get(f"/sandboxes/{made['sandboxID']}")).json()
        assert shown["metadata"] == {"k": "v"}
        assert shown["state"] == "running"
        assert shown["allowInternetAccess"] is None
        assert shown["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
        assert (shown["cpuCount"], shown["memoryMB"], shown["diskSizeMB"]) == (2, 1024, 10240)
        assert shown["envdAccessToken"] == made["envdAccessToken"]

    in_world(scenario)


def test_default_timeouts_differ_between_the_versions(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        for path, expected in (("/v2/sandboxes", 300), ("/sandboxes", 15)):
            made = (await world.http.post(path, json={"templateID": "base"})).json()
            shown = (await world.http.get(f"/sandboxes/{made['sandboxID']}")).json()
            assert seconds_left(world, shown) == pytest.approx(expected, abs=0.1)

    in_world(scenario)


def test_legacy_ids_are_read_and_malformed_ones_refused(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        assert (await world.http.get(f"/sandboxes/{sandbox_id}-6532622b")).status_code == 200
        for bad in ("A", "i_1", "a-b-c", "..%00", "%ff", "i" * 100):
            answer = await world.http.get(f"/sandboxes/{bad}")
            assert (answer.status_code, answer.json()["message"]) == (400, "Invalid sandbox ID")

    in_world(scenario)


def test_kill_ends_it_everywhere_and_a_second_kill_is_404(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create(metadata={"a": "b"})
        assert (await world.http.delete(f"/sandboxes/{sandbox_id}")).status_code == 204
        assert world.node.running() == []
        for method, path, body in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("POST", "/timeout", {"timeout": 5}),
            ("POST", "/refreshes", {}),
            ("POST", "/connect", {"timeout": 5}),
        ):
            answer = await world.http.request(method, f"/sandboxes/{sandbox_id}{path}", json=body)
            assert answer.status_code == 404
            assert answer.json()["code"] == 404
            assert f'Sandbox "{sandbox_id}" doesn\'t exist' in answer.json()["message"]
        assert await ids(world) == []

    in_world(scenario)


def test_concurrent_kills_all_succeed_and_bill_once(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        release = asyncio.Event()
        stops = 0

        async def hold(method: str) -> None:
            nonlocal stops
            if method == "stop":
                stops += 1
                if stops == 3:
                    release.set()
                await release.wait()

        world.node.hold = hold
        async with asyncio.TaskGroup() as group:
            kills = [
                group.create_task(world.http.delete(f"/sandboxes/{sandbox_id}")) for _ in range(3)
            ]
        assert [kill.result().status_code for kill in kills] == [204, 204, 204]
        events = (await world.http.get("/v1/events")).json()
        assert [event["type"] for event in events] == ["sandbox.started", "sandbox.stopped"]

    in_world(scenario)


def test_a_node_that_is_away_keeps_the_kill_for_later(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        world.node.reachable = False
        answer = await world.http.delete(f"/sandboxes/{sandbox_id}")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert (await world.http.get(f"/sandboxes/{sandbox_id}")).status_code == 404
        world.node.reachable = True
        await world.app.state.sandbox_reconciler.step()
        assert world.node.running() == []
        assert (await world.http.delete(f"/sandboxes/{sandbox_id}")).status_code == 404

    in_world(scenario)


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (NodeFullError("full"), 503, "sandbox_capacity_unavailable", ("true", "1")),
        (NodeUnreachableError("gone"), 503, "sandbox_no_compatible_node", ("true", "1")),
        (NodeTimeoutError("slow"), 504, "sandbox_placement_timeout", ("false", None)),
        (NodeImageError("lost"), 409, "template_not_ready", (None, None)),
        (NodeRefusedError("broken"), 500, "sandbox_create_failed", (None, None)),
    ],
)
def test_a_start_that_fails_leaves_nothing(
    in_world: InWorld,
    error: Exception,
    status: int,
    code: str,
    retry: tuple[str | None, str | None],
) -> None:
    async def scenario(world: World) -> None:
        world.node.fail["start"] = error
        answer = await world.http.post("/v2/sandboxes", json={"templateID": "base"})
        assert (answer.status_code, answer.json()["error_code"]) == (status, code)
        assert (answer.headers.get("Should-Retry"), answer.headers.get("Retry-After")) == retry
        assert str(error) not in answer.text
        assert world.node.calls["stop"] == 1
        assert await ids(world) == []
        status_shown = await world.http.get("/internal/status", headers=world.cluster)
        assert sum(status_shown.json()["sandboxes"].values()) == 0
        [event] = (await world.http.get("/v1/events")).json()
        assert event["type"] == "sandbox.failed"

    in_world(scenario)


def test_no_node_and_no_room_are_said_before_anything_is_made(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        world.node.reachable = False
        await world.app.state.nodes.refresh()
        answer = await world.http.post("/v2/sandboxes", json={"templateID": "base"})
        assert answer.status_code == 503
        assert answer.json()["error_code"] == "sandbox_no_compatible_node"
        assert answer.headers["Should-Retry"] == "true"
        world.node.reachable = True
        for total, free, code, retry in (
            (4096, 512, "sandbox_capacity_unavailable", "true"),
            (512, 512, "sandbox_no_compatible_node", "false"),
        ):
            world.node.memory_mib, world.node.memory_free_mib = total, free
            await world.app.state.nodes.refresh()
            answer = await world.http.post("/v2/sandboxes", json={"templateID": "base"})
            assert (answer.status_code, answer.json()["error_code"]) == (503, code)
            assert answer.headers["Should-Retry"] == retry
        assert "start" not in world.node.calls

    in_world(scenario)


def test_the_teams_limit_counts_what_lives(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        first = await world.create()
        await world.create()
        answer = await world.http.post("/v2/sandboxes", json={"templateID": "base"})
        assert answer.status_code == 429
        assert answer.headers["Should-Retry"] == "false"
        assert answer.json()["error_code"] == "concurrent_sandbox_limit"
        await world.http.delete(f"/sandboxes/{first}")
        await world.create()

    in_world(scenario, concurrent_sandboxes=2)


def test_concurrent_creates_do_not_pass_the_limit(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            creates = [
                group.create_task(world.http.post("/v2/sandboxes", json={"templateID": "base"}))
                for _ in range(8)
            ]
        codes = sorted(create.result().status_code for create in creates)
        assert codes == [201] * 3 + [429] * 5
        assert len(world.node.running()) == 3

    in_world(scenario, concurrent_sandboxes=3)


def test_timeout_may_shorten_connect_and_refresh_only_extend(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        path = f"/sandboxes/{await world.create(timeout=100)}"

        async def left() -> float:
            return round(seconds_left(world, (await world.http.get(path)).json()))

        assert (await world.http.post(f"{path}/timeout", json={"timeout": 50})).status_code == 204
        assert await left() == 50
        answer = await world.http.post(f"{path}/connect", json={"timeout": 20})
        assert answer.status_code == 200
        assert answer.json()["envdAccessToken"]
        assert await left() == 50
        await world.http.post(f"{path}/connect", json={"timeout": 80})
        assert await left() == 80
        assert (await world.http.post(f"/v2{path}/connect")).status_code == 200
        assert await left() == 300
        await world.http.post(f"{path}/timeout", json={"timeout": 5})
        assert (await world.http.post(f"{path}/refreshes")).status_code == 204
        assert await left() == 15
        await world.http.post(f"{path}/refreshes", json={"duration": 1})
        assert await left() == 15
        await world.http.post(f"{path}/refreshes", json={"duration": 3600})
        assert await left() == 3600
        # connect v1 must name a timeout
        assert (await world.http.post(f"{path}/connect", json={})).status_code == 400

    in_world(scenario)


def test_life_is_bounded_from_the_start(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        too_long = {"templateID": "base", "timeout": 2 * 3600 + 1}
        answer = await world.http.post("/v2/sandboxes", json=too_long)
        assert answer.status_code == 400
        assert answer.json()["message"] == "Timeout cannot be greater than 2 hours"
        path = f"/sandboxes/{await world.create(timeout=3600)}"
        world.clock.forward(3000)
        assert (await world.http.post(f"{path}/timeout", json={"timeout": 9000})).status_code == 204
        shown = (await world.http.get(path)).json()
        assert seconds_left(world, shown) == pytest.approx(2 * 3600 - 3000, abs=0.1)
        answer = await world.http.post(f"/v2{path}/connect", json={"timeout": 7201})
        assert answer.status_code == 400

    in_world(scenario, max_sandbox_hours=2)


def test_an_expired_sandbox_is_unreachable_at_once_and_then_ended(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create(timeout=10)
        kept = await world.create(timeout=100)
        assert await world.app.state.sandbox_reconciler.expire() == pytest.approx(5, abs=5)
        world.clock.forward(10)
        assert (await world.http.get(f"/sandboxes/{sandbox_id}")).status_code == 404
        route = await world.http.get(f"/internal/routes/{sandbox_id}", headers=world.cluster)
        assert route.status_code == 404
        assert await ids(world) == [kept]
        assert sandbox_id in world.node.running()
        await world.app.state.sandbox_reconciler.expire()
        assert world.node.running() == [kept]
        assert world.node.sandboxes[sandbox_id].stop_reason is StopReason.TIMEOUT

    in_world(scenario)


def test_of_many_that_expire_each_has_its_own_fate(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        made = [await world.create(timeout=10) for _ in range(5)]
        begun, release = asyncio.Event(), asyncio.Event()

        async def hold(method: str) -> None:
            if method == "stop":
                begun.set()
                await release.wait()

        world.clock.forward(11)
        world.node.hold = hold
        async with asyncio.TaskGroup() as group:
            group.create_task(world.app.state.sandbox_reconciler.expire())
            await begun.wait()
            # Seen by the machine's own event, and killed by its owner, while the others wait.
            world.node.end(SandboxId(made[0]), StopReason.TIMEOUT)
            killed = group.create_task(world.http.delete(f"/sandboxes/{made[1]}"))
            refused = await world.http.post(
                f"/v2/sandboxes/{made[2]}/connect", json={"timeout": 100}
            )
            assert refused.status_code == refused.json()["code"] == 409
            refused = await world.http.post(
                f"/sandboxes/{made[2]}/timeout",
                json={"timeout": 100},
                headers=await world.other_team(),
            )
            assert refused.status_code == 404
            release.set()
        assert killed.result().status_code == 204
        assert world.node.running() == []
        events = (await world.http.get("/v1/events?limit=100")).json()
        ends = [event["sandboxID"] for event in events if event["type"] == "sandbox.stopped"]
        assert sorted(ends) == sorted(made)

    in_world(scenario)


def test_a_stop_that_fails_does_not_keep_the_others(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        await world.create(timeout=10)
        await world.create(timeout=10)

        async def fail_once(method: str) -> None:
            if method == "stop" and world.node.calls["stop"] == 1:
                raise NodeTimeoutError("slow")

        world.clock.forward(11)
        world.node.hold = fail_once
        await world.app.state.sandbox_reconciler.expire()
        assert len(world.node.running()) == 1
        status = await world.http.get("/internal/status", headers=world.cluster)
        assert status.json()["sandboxes"]["stopping"] == 1
        await world.app.state.sandbox_reconciler.step()
        assert world.node.running() == []

    in_world(scenario)


def test_timeout_zero_ends_it(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        path = f"/sandboxes/{await world.create()}"
        deadlines = world.app.state.sandboxes.outcomes.deadlines_changed
        deadlines.clear()
        assert (await world.http.post(f"{path}/timeout", json={"timeout": 0})).status_code == 204
        assert deadlines.is_set()
        assert (await world.http.get(path)).status_code == 404
        await world.app.state.sandbox_reconciler.expire()
        assert world.node.running() == []

    in_world(scenario)


def test_lists_page_in_both_orders_and_count(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        made = [await world.create() for _ in range(7)]
        for order, expected in (("asc", made), ("desc", made[::-1])):
            got: list[str] = []
            token = ""
            while True:
                answer = await world.http.get(
                    "/v2/sandboxes",
                    params={"limit": 3, "order": order} | ({"nextToken": token} if token else {}),
                )
                assert answer.headers["X-Total-Running"] == "7"
                got += [sandbox["sandboxID"] for sandbox in answer.json()]
                token = answer.headers.get("X-Next-Token", "")
                if not token:
                    break
                wrong = {"order": "asc" if order == "desc" else "desc", "nextToken": token}
                answer = await world.http.get("/v2/sandboxes", params=wrong)
                assert answer.status_code == 400
                assert answer.json()["message"] == "Invalid next token"
            assert got == expected
        # a full last page announces nothing more
        answer = await world.http.get("/v2/sandboxes?limit=7")
        assert "X-Next-Token" not in answer.headers
        old = (await world.http.get("/sandboxes")).json()
        assert [sandbox["sandboxID"] for sandbox in old] == made[::-1]

    in_world(scenario)


def test_the_metadata_filter_decodes_as_both_sdks_encode(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        hostile = {'k"ey & = + %': "v/ä ☃ +%20'", "plain": "x"}
        wanted = await world.create(metadata=hostile)
        await world.create(metadata={"plain": "x"})
        await world.create()
        python = urlencode({quote(k): quote(v) for k, v in hostile.items()})
        answer = await world.http.get("/v2/sandboxes", params={"metadata": python})
        assert [sandbox["sandboxID"] for sandbox in answer.json()] == [wanted]
        assert answer.json()[0]["metadata"] == hostile
        js = urlencode({quote(k, safe="!'()*"): quote(v, safe="!'()*") for k, v in hostile.items()})
        answer = await world.http.get("/sandboxes", params={"metadata": js})
        assert [sandbox["sandboxID"] for sandbox in answer.json()] == [wanted]
        assert len(await ids(world, "?metadata=plain%3Dx")) == 2
        assert await ids(world, "?metadata=plain%3Dy") == []
        assert await ids(world, "?metadata=plai%3Dnx") == []

    in_world(scenario)


def test_other_filters(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        first = await world.create()
        second = await world.create()
        assert await ids(world, "?state=paused") == []
        for state in ("running", "running,paused", "running&state=paused"):
            assert await ids(world, f"?state={state}") == [second, first]
        assert await ids(world, "?template=base") == [second, first]
        template_id = (await world.http.get("/templates")).json()[0]["templateID"]
        assert await ids(world, f"?template={template_id}") == [second, first]
        assert await ids(world, "?template=nothing") == []
        assert await ids(world, "?template=b%3Ad%3A%3F") == []
        started = (await world.http.get(f"/sandboxes/{second}")).json()["startedAt"]
        for moment in (started, started.replace("Z", "+00:00"), quote(started)):
            assert await ids(world, f"?startedAfter={moment}") == [second]
        milliseconds = started[:-4] + "Z"
        assert second in await ids(world, f"?startedAfter={milliseconds}")

    in_world(scenario)


def test_metrics_are_sampled_and_read_by_range(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        assert (await world.http.get(f"/sandboxes/{sandbox_id}/metrics")).json() == []
        for _ in range(3):
            await world.app.state.sampler.step()
            world.clock.forward(5)
        points = (await world.http.get(f"/sandboxes/{sandbox_id}/metrics")).json()
        assert len(points) == 3
        assert points[0]["memTotal"] == 1024 * 1024 * 1024
        assert set(points[0]) == {
            "timestamp", "timestampUnix", "cpuCount", "cpuUsedPct", "memUsed", "memTotal",
            "memCache", "diskUsed", "diskTotal",
        }  # fmt: skip
        second = points[1]["timestampUnix"]
        path = f"/sandboxes/{sandbox_id}/metrics"
        ranged = (await world.http.get(f"{path}?start={second}&end={second}")).json()
        assert ranged == [points[1]]
        assert (await world.http.get(f"{path}?end=1000")).json() == []
        assert (await world.http.get(f"{path}?start={2**62}&end={2**63 - 1}")).json() == []
        assert (await world.http.get(f"{path}?start=2&end=1")).status_code == 400
        bulk = await world.http.get(f"/sandboxes/metrics?sandbox_ids={sandbox_id},{ABSENT}")
        assert bulk.json() == {"sandboxes": {sandbox_id: points[2]}}
        many = ",".join(f"i{number}" for number in range(101))
        answer = await world.http.get(f"/sandboxes/metrics?sandbox_ids={many}")
        assert answer.status_code == 400
        foreign = await world.other_team()
        assert (await world.http.get(path, headers=foreign)).json() == []
        bulk = await world.http.get(f"/sandboxes/metrics?sandbox_ids={sandbox_id}", headers=foreign)
        assert bulk.json() == {"sandboxes": {}}

    in_world(scenario)


def test_logs_merge_node_and_lifecycle(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        path = f"/sandboxes/{sandbox_id}/logs"
        await world.http.delete(f"/sandboxes/{sandbox_id}")
        shown = (await world.http.get(path)).json()
        messages = [entry["message"] for entry in shown["logEntries"]]
        assert messages == ["restored", "Sandbox started", "Sandbox stopped"]
        assert all('"level": "info"' in line["line"] for line in shown["logs"])
        backward = (await world.http.get(f"/v2{path}?limit=2")).json()["logs"]
        assert [entry["message"] for entry in backward] == ["Sandbox stopped", "Sandbox started"]
        forward = await world.http.get(f"/v2{path}?direction=forward&search=stopped")
        assert [entry["message"] for entry in forward.json()["logs"]] == ["Sandbox stopped"]
        assert (await world.http.get(f"/v2{path}?level=error")).json() == {"logs": []}
        assert (await world.http.get(f"{path}?start={2**62}")).json()["logs"] == []
        assert (await world.http.get(f"/v2{path}?level=loud")).status_code == 400
        unknown = await world.http.get(f"/sandboxes/{ABSENT}/logs")
        assert unknown.json() == {"logs": [], "logEntries": []}
        foreign = await world.other_team()
        assert (await world.http.get(path, headers=foreign)).json()["logs"] == []
        world.node.reachable = False
        assert len((await world.http.get(path)).json()["logs"]) == 2

    in_world(scenario)


def test_events_page_and_resume(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        for _ in range(3):
            await world.http.delete(f"/sandboxes/{await world.create()}")
        first = await world.http.get("/v1/events?limit=4")
        assert len(first.json()) == 4
        token = first.headers["X-Next-Token"]
        rest = await world.http.get(f"/v1/events?limit=4&nextToken={token}")
        assert len(rest.json()) == 2
        assert "X-Next-Token" not in rest.headers
        last = rest.json()[-1]["id"]
        assert (await world.http.get(f"/v1/events?after={last}")).json() == []
        foreign = await world.other_team()
        assert (await world.http.get("/v1/events", headers=foreign)).json() == []

    in_world(scenario)

"""The edge hears of sandboxes that begin to run, and is ready when the first request comes."""

import asyncio

from edge_world import ONE, TWO, World, echo, eventually, in_world

from alcove.concurrency import spawn
from alcove.wire.hosts import GUEST_PORT
from alcove.wire.ids import SandboxId


@in_world
async def test_a_sandbox_that_has_begun_is_reached_without_asking(there: World) -> None:
    await there.sandbox(ONE, {GUEST_PORT: echo("agent"), 8000: echo("program")})
    following = spawn(there.edge.follower.run(), name="following")
    there.control.begun.put_nowait(ONE)
    await eventually(lambda: there.ingress.connects[ONE, GUEST_PORT] == 1)
    assert (await there.get(port=GUEST_PORT)).json()["label"] == "agent"
    assert (await there.get()).json()["label"] == "program"
    # By the tunnel that was there, and by the route that was told.
    assert there.ingress.connects == {(ONE, GUEST_PORT): 1, (ONE, 8000): 1}
    assert there.control.asked[f"/internal/routes/{ONE}"] == 0
    following.cancel()


@in_world
async def test_a_request_waits_for_the_tunnel_that_is_being_opened(there: World) -> None:
    await there.sandbox(ONE, {GUEST_PORT: echo("agent")})
    there.ingress.saving[ONE] = asyncio.Event()
    following = spawn(there.edge.follower.run(), name="following")
    there.control.begun.put_nowait(ONE)
    await eventually(lambda: there.ingress.connects[ONE, GUEST_PORT] == 1)
    asking = spawn(there.get(port=GUEST_PORT), name="asking")
    await asyncio.sleep(0.05)
    assert not asking.done()
    there.ingress.saving.pop(ONE).set()
    assert (await asking).json()["label"] == "agent"
    assert there.ingress.connects[ONE, GUEST_PORT] == 1
    following.cancel()


@in_world
async def test_what_has_ended_again_and_old_news_do_no_harm(there: World) -> None:
    await there.sandbox(ONE, {8000: echo("one")}, generation=2)
    assert (await there.get()).json()["label"] == "one"
    following = spawn(there.edge.follower.run(), name="following")
    there.control.routes[ONE]["generation"] = 1
    await there.sandbox(TWO, {GUEST_PORT: echo("two")})
    there.ingress.kill(TWO)
    for sandbox in (ONE, TWO):
        there.control.begun.put_nowait(sandbox)
    await eventually(lambda: there.ingress.connects[TWO, GUEST_PORT] == 1)
    assert (await there.get()).json()["label"] == "one"
    # A stream that ends is opened again.
    there.control.begun.put_nowait("")
    await eventually(lambda: there.control.asked["/internal/routes"] == 2)
    await there.sandbox(TWO, {GUEST_PORT: echo("two")}, generation=2)
    there.control.begun.put_nowait(TWO)
    await eventually(lambda: there.ingress.connects[TWO, GUEST_PORT] == 2)
    assert (await there.get(sandbox=TWO, port=GUEST_PORT)).json()["label"] == "two"
    following.cancel()


@in_world
async def test_it_hears_that_the_time_of_a_sandbox_was_made_shorter(there: World) -> None:
    await there.sandbox(ONE, {8000: echo("one")})
    assert (await there.get()).status == 200
    following = spawn(there.edge.follower.run(), name="following")
    there.control.routes[ONE] |= {"state": "paused", "auto_resume": False, "node_ingress": ""}
    there.control.begun.put_nowait(ONE)
    await eventually(lambda: there.edge.follower._catalog.fresh(SandboxId(ONE)) is None)
    assert (await there.get()).json()["message"] == "The sandbox was not found"
    following.cancel()

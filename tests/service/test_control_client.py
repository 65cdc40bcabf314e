"""What the official Python client makes of control's answers: exceptions, and how often it asks."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from control_world import World, served, world
from e2b import Sandbox, SandboxQuery, SandboxState
from e2b.exceptions import (
    AuthenticationException,
    RateLimitException,
    SandboxException,
    SandboxNotFoundException,
    ServiceBusyException,
)

from alcove.control.nodes.client import NodeFullError, NodeImageError, NodeTimeoutError

pytestmark = pytest.mark.sdk
ABSENT = "i" + "0" * 20


def with_client(
    directory: Path, script: Callable[[World, dict[str, Any]], None], **options: Any
) -> None:
    """Run a script of blocking calls; its second argument are the client's options."""

    async def scenario() -> None:
        async with world(directory, **options) as here, served(here) as port:
            client = {"api_url": f"http://127.0.0.1:{port}", "api_key": here.key}
            await asyncio.to_thread(script, here, client)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "raised", "starts"),
    [
        (NodeFullError("full"), ServiceBusyException, 4),
        (NodeTimeoutError("slow"), SandboxException, 1),
        (NodeImageError("of another driver"), SandboxException, 1),
    ],
)
def test_only_what_may_change_by_itself_is_asked_again(
    tmp_path: Path, error: Exception, raised: type[Exception], starts: int
) -> None:
    def script(here: World, client: dict[str, Any]) -> None:
        here.node.fail["start"] = error
        with pytest.raises(raised):
            Sandbox.create(**client)
        assert here.node.calls["start"] == starts

    with_client(tmp_path, script)


def test_room_that_comes_in_time_is_found(tmp_path: Path) -> None:
    def script(here: World, client: dict[str, Any]) -> None:
        async def full_at_first(method: str) -> None:
            if method == "start" and here.node.calls["start"] == 1:
                raise NodeFullError("full")

        here.node.hold = full_at_first
        assert Sandbox.create(**client).sandbox_id in here.node.running()

    with_client(tmp_path, script)


def test_a_limit_is_told_at_once(tmp_path: Path) -> None:
    def script(here: World, client: dict[str, Any]) -> None:
        Sandbox.create(**client)
        with pytest.raises(RateLimitException):
            Sandbox.create(**client)
        assert here.node.calls["start"] == 1

    with_client(tmp_path, script, concurrent_sandboxes=1)


def test_what_is_not_there(tmp_path: Path) -> None:
    def script(here: World, client: dict[str, Any]) -> None:
        with pytest.raises(SandboxException, match="template 'nothing' not found"):
            Sandbox.create("nothing", **client)
        for call in (
            lambda: Sandbox.connect(ABSENT, **client),
            lambda: Sandbox.get_info(ABSENT, **client),
            lambda: Sandbox.set_timeout(ABSENT, 5, **client),
        ):
            with pytest.raises(SandboxNotFoundException):
                call()
        assert Sandbox.kill(ABSENT, **client) is False
        with pytest.raises(AuthenticationException):
            Sandbox.create(**client | {"api_key": "e2b_" + "0" * 40})

    with_client(tmp_path, script)


def test_a_life(tmp_path: Path) -> None:
    def script(here: World, client: dict[str, Any]) -> None:
        strange = {"käy & co": "a=b&c %2F"}
        made = Sandbox.create(timeout=60, metadata=strange, **client)
        other = Sandbox.create(**client)
        assert Sandbox.connect(made.sandbox_id, **client).sandbox_id == made.sandbox_id
        info = made.get_info()
        assert (info.metadata, info.state) == (strange, SandboxState.RUNNING)
        assert (info.end_at - info.started_at).total_seconds() == pytest.approx(300, abs=1)
        pages = Sandbox.list(query=SandboxQuery(metadata=strange), **client)
        assert [entry.sandbox_id for entry in pages.next_items()] == [made.sandbox_id]
        assert not pages.has_next
        pages = Sandbox.list(limit=1, **client)
        listed = [entry.sandbox_id for _ in range(2) for entry in pages.next_items()]
        assert listed == [other.sandbox_id, made.sandbox_id]
        assert not pages.has_next
        assert made.kill() is True
        assert made.kill() is False

    with_client(tmp_path, script)

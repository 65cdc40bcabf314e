"""A control app on a fresh database with a fake node: what the control tests run against.

SQLite always, PostgreSQL too when ALCOVE_TEST_POSTGRES_URL names a server. Loops are off: tests
call the steps themselves, and set the clock.
"""

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import uvicorn
from fastapi import FastAPI
from sqlalchemy.engine import make_url
from starlette.types import ASGIApp

from alcove.control.asgi import HeadLimitedProtocol
from alcove.control.clock import MICROSECONDS
from alcove.control.main import build_app
from alcove.control.nodes.fake import FakeNode
from alcove.control.sandboxes.context import no_checkpoint
from alcove.control.settings import Settings
from alcove.control.teams import store as team_store
from alcove.control.teams.service import Caller, Teams
from alcove.wire.ids import new_team_id

POSTGRES_URL = os.environ.get("ALCOVE_TEST_POSTGRES_URL", "")
DATABASES = ["sqlite", *(["postgresql"] if POSTGRES_URL else [])]


class Clock:
    """Control's time, which moves when a test says so, and a microsecond at every look."""

    def __init__(self) -> None:
        self.at = 1_800_000_000 * MICROSECONDS

    def __call__(self) -> int:
        self.at += 1
        return self.at

    def forward(self, seconds: float) -> None:
        self.at += round(seconds * MICROSECONDS)


@dataclass(slots=True)
class World:
    app: FastAPI
    node: FakeNode
    clock: Clock
    http: httpx.AsyncClient
    """Sends the local team's key."""
    key: str

    @property
    def cluster(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.app.state.cluster_token}"}

    async def create(self, **fields: Any) -> str:
        answer = await self.http.post("/v2/sandboxes", json={"templateID": "base"} | fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["sandboxID"])

    async def other_team(self) -> dict[str, str]:
        """Headers of a key of another team."""
        teams: Teams = self.app.state.teams
        team = team_store.Team(new_team_id(), f"t{uuid.uuid4().hex[:8]}", "other", None, 1)
        async with self.app.state.db.transaction() as tx:
            await team_store.insert_team(tx, team)
        _, key = await teams.create_key(Caller(team, "", ""), "other")
        return {"X-API-Key": key}

    async def restart(self, **changes: Any) -> None:
        """Nothing of the process survives but what it wrote down: a new app on the same files."""
        settings = self.app.state.settings_of_test
        await self.app.state.stop_of_test()
        await start_in(self, settings, **changes)


async def start_in(
    world: World,
    settings: Settings,
    *,
    checkpoint: Callable[[str], Awaitable[None]] = no_checkpoint,
    run_loops: bool = False,
) -> None:
    app = build_app(
        settings, node=world.node, clock=world.clock, checkpoint=checkpoint, run_loops=run_loops
    )
    lifespan = app.router.lifespan_context(app)
    await lifespan.__aenter__()

    async def stop() -> None:
        await lifespan.__aexit__(None, None, None)

    app.state.settings_of_test = settings
    app.state.stop_of_test = stop
    await app.state.nodes.refresh()
    world.app = app
    if world.http is not None:
        await world.http.aclose()
    world.key = (settings.data_dir / "local.env").read_text().strip().partition("=")[2]
    world.http = httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://control",
        headers={"X-API-Key": world.key},
    )


@asynccontextmanager
async def world(
    directory: Path,
    database: str = "sqlite",
    *,
    with_template: bool = True,
    checkpoint: Callable[[str], Awaitable[None]] = no_checkpoint,
    run_loops: bool = False,
    **settings: Any,
) -> AsyncIterator[World]:
    async with database_url(database) as url:
        made = Settings(data_dir=directory, database_url=url, **settings)
        here = World(None, FakeNode(), Clock(), None, "")  # type: ignore[arg-type]
        await start_in(here, made, checkpoint=checkpoint, run_loops=run_loops)
        if with_template:
            await here.app.state.template_reconciler.step()
            await here.app.state.template_reconciler.step()
        try:
            yield here
        finally:
            await here.http.aclose()
            await here.app.state.stop_of_test()


@asynccontextmanager
async def served(
    here: World,
    app: ASGIApp | None = None,
    *,
    closed: asyncio.Event | None = None,
    head_timeout_s: float = HeadLimitedProtocol.head_timeout_s,
) -> AsyncIterator[int]:
    """The app behind uvicorn, as main() serves it; yields the port.

    `app`: what to serve in place of `here.app`. `closed` is set when a client has gone.
    """

    class Protocol(HeadLimitedProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if closed is not None:
                closed.set()

    Protocol.head_timeout_s = head_timeout_s
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app or here.app, http=Protocol, ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listener.close()


@asynccontextmanager
async def database_url(database: str) -> AsyncIterator[str]:
    if database == "sqlite":
        yield ""
        return
    name = f"alcove_test_{uuid.uuid4().hex[:12]}"
    url = make_url(POSTGRES_URL)
    admin = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield url.set(drivername="postgresql+asyncpg", database=name).render_as_string(
            hide_password=False
        )
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

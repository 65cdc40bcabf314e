"""The schema's history: from empty to what the tables say, in one line."""

import asyncio
import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from control_world import DATABASES, database_url
from sqlalchemy import Connection

from alcove.control import main
from alcove.control.db import Database, metadata, migration_config


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, metadata))


def heads(connection: Connection) -> list[str]:
    return list(ScriptDirectory.from_config(migration_config(connection)).get_heads())


@pytest.mark.parametrize("database", DATABASES)
def test_the_history_makes_exactly_the_tables(tmp_path: Path, database: str) -> None:
    assert main.build_app  # with it, every table is known to `metadata`

    async def scenario() -> None:
        async with database_url(database) as url:
            db = Database(url or f"sqlite+aiosqlite:///{tmp_path / 'control.db'}")
            for _ in range(2):
                await db.migrate()
            async with db.transaction() as tx:
                assert await tx.run_sync(differences) == []
                assert len(await tx.run_sync(heads)) == 1
            await db.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("database", DATABASES)
def test_several_processes_may_migrate_at_once(tmp_path: Path, database: str) -> None:
    async def scenario() -> None:
        async with database_url(database) as url:
            dbs = [
                Database(url or f"sqlite+aiosqlite:///{tmp_path / 'control.db'}") for _ in range(3)
            ]
            async with asyncio.TaskGroup() as group:
                for db in dbs:
                    group.create_task(db.migrate())
            for db in dbs:
                await db.close()

    asyncio.run(scenario())


def start_control(directory: Path, **settings: str) -> str:
    """Start the real process, which must not stay; what it said."""
    environment = {f"ALCOVE_CONTROL_{name.upper()}": value for name, value in settings.items()}
    finished = subprocess.run(
        [sys.executable, "-m", "alcove.control.main"],
        env=os.environ | environment | {"ALCOVE_CONTROL_DATA_DIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 1
    return finished.stderr.splitlines()[-1]


def test_a_newer_schema_is_left_alone_and_named(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('0099')")
        connection.commit()
    said = start_control(tmp_path)
    assert "cannot be used: it was written by a newer Alcove (schema 0099" in said
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("alembic_version",)]


def test_a_database_that_cannot_be_had_is_named_without_its_password(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    said = start_control(
        tmp_path, database_url=f"postgresql+asyncpg://alcove:hush@127.0.0.1:{port}/alcove"
    )
    assert said.startswith(
        f"control: the database postgresql+asyncpg://alcove:***@127.0.0.1:{port}"
    )
    assert "hush" not in said
    (tmp_path / "control.db").write_bytes(b"no database at all" * 1000)
    assert "file is not a database" in start_control(tmp_path)

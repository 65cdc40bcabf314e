"""The schema's history: from empty to what the tables say, in one line."""

import asyncio
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

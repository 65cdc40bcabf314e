"""Cancelled work leaves the database usable: no lock, no connection stays behind."""

import asyncio
import os
from pathlib import Path

import pytest
from control_world import DATABASES, database_url
from sqlalchemy import text

from alcove.control.db import Database

SLOW = {
    "sqlite": "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<20000) "
    "SELECT count(*) FROM c",
    "postgresql": "SELECT pg_sleep(0.004)",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("database", DATABASES)
def test_cancelled_transactions_leave_nothing_locked(tmp_path: Path, database: str) -> None:
    async def scenario() -> None:
        async with database_url(database) as url:
            db = Database(url or f"sqlite+aiosqlite:///{tmp_path / 'control.db'}")
            async with db.transaction() as tx:
                await tx.execute(text("CREATE TABLE t (n INTEGER)"))

            async def work() -> None:
                async with db.transaction() as tx:
                    await tx.execute(text("INSERT INTO t VALUES (1)"))
                    await tx.execute(text(SLOW[database]))

            cancelled = 0
            for number in range(60):
                task = asyncio.create_task(work())
                await asyncio.wait([task], timeout=0.0005 * (number % 12))
                task.cancel()
                async with asyncio.timeout(5):
                    await asyncio.wait([task])
                cancelled += task.cancelled()
            assert cancelled > 0
            async with asyncio.timeout(5), db.transaction() as tx:
                rows = (await tx.execute(text("SELECT count(*) FROM t"))).scalar_one()
            # One cancelled during its commit has committed.
            assert rows >= 60 - cancelled
            await db.close()

    asyncio.run(scenario())


def test_the_embedded_database_is_ours_alone(tmp_path: Path) -> None:
    def modes() -> dict[str, int]:
        return {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("control.db*")}

    async def scenario() -> None:
        path = tmp_path / "control.db"
        # As an earlier version, or a copy put back, may have left it.
        path.touch(0o644)
        db = Database(f"sqlite+aiosqlite:///{path}")
        await db.migrate()
        assert modes() == {"control.db": 0o600, "control.db-wal": 0o600, "control.db-shm": 0o600}
        await db.close()

    asyncio.run(scenario())


def test_a_durable_transaction_is_on_the_disk_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda fd: flushed.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    )

    async def scenario() -> None:
        db = Database(f"sqlite+aiosqlite:///{tmp_path / 'control.db'}")
        async with db.transaction() as tx:
            await tx.execute(text("CREATE TABLE t (n INTEGER)"))
        assert flushed == []
        async with db.transaction(durable=True) as tx:
            await tx.execute(text("INSERT INTO t VALUES (1)"))
            assert flushed == []
        assert flushed == [f"{tmp_path / 'control.db'}-wal"]
        await db.close()

    asyncio.run(scenario())

"""The database: SQLite (WAL, one writer) or PostgreSQL, the same code for both.

`transaction()` reads and writes and commits at its end; on SQLite there is one at a time.
`reading()` runs single statements outside any transaction and never waits for a writer.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    BigInteger,
    Connection,
    CursorResult,
    Executable,
    Integer,
    MetaData,
    event,
    make_url,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from alcove.concurrency import uninterrupted

_log = structlog.get_logger()
_T = TypeVar("_T")
_Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Serial = BigInteger().with_variant(Integer(), "sqlite")
"""Type of a growing primary key: SQLite counts up only what is exactly INTEGER."""

_MIGRATION_LOCK = 0x416C636F7665
"""Number of PostgreSQL's advisory lock: one control migrates, the others wait."""


_SQLITE_READERS = 4
_POSTGRES_CONNECTIONS = 20


class DatabaseUnusableError(Exception):
    """The message names the database, without its password, and what to do if we know."""


class _SchemaTooNewError(Exception):
    """Nobody here knows what the tables mean."""


class Tx:
    """What stores take: a connection, inside a transaction or reading.

    A statement that has begun is never cancelled: the driver would leave its connection behind,
    on SQLite with the write lock. The cancellation comes after the statement.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def execute(
        self, statement: Executable, parameters: _Parameters | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        return await uninterrupted(self._connection.execute(statement, parameters))

    async def run_sync(self, work: Callable[[Connection], _T]) -> _T:
        return await uninterrupted(self._connection.run_sync(work))


class Database:
    def __init__(self, url: str) -> None:
        self.is_sqlite = url.startswith("sqlite")
        # The pools hand connections to whoever comes in a lucky moment; these queues are fair.
        self._write_turn: AbstractAsyncContextManager[object] = asyncio.Lock()
        self._read_turn: AbstractAsyncContextManager[object] = asyncio.Semaphore(_SQLITE_READERS)
        self._log_file: Path | None = None
        if self.is_sqlite:
            self._log_file = _keep_private(url)
            self._writer = _sqlite_engine(url, connections=1, begin="BEGIN IMMEDIATE")
            self._reader = _sqlite_engine(url, connections=_SQLITE_READERS, begin="")
            return
        self._write_turn = asyncio.Semaphore(_POSTGRES_CONNECTIONS)
        self._read_turn = self._write_turn
        self._writer = create_async_engine(
            url,
            pool_size=_POSTGRES_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"server_settings": {"lock_timeout": "4s", "statement_timeout": "15s"}},
        )
        self._reader = self._writer.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def transaction(self, *, durable: bool = False) -> AsyncIterator[Tx]:
        """What is written stays or goes as one.

        `durable`: also after a loss of power, and everything committed before it. On SQLite that
        takes a flush to the disk, which others are spared; PostgreSQL always does it.
        """
        async with self._write_turn, _connected(self._writer) as connection:
            await uninterrupted(_begin(connection))
            yield Tx(connection)
            await uninterrupted(connection.commit())
        if durable and self._log_file is not None:
            await asyncio.to_thread(_flush, self._log_file)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Tx]:
        async with self._read_turn, _connected(self._reader) as connection:
            yield Tx(connection)

    async def migrate(self) -> None:
        """Bring the schema to the newest revision. Safe to run from several processes at once."""
        async with self.transaction() as tx:
            # On SQLite, BEGIN IMMEDIATE is the lock.
            if not self.is_sqlite:
                await tx.execute(
                    text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK}
                )
            await tx.run_sync(_upgrade)

    async def ping(self) -> None:
        async with self.reading() as tx:
            await tx.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self._reader.dispose()
        await self._writer.dispose()


async def prepare(url: str) -> None:
    """Make the database ready for a Database, or raise DatabaseUnusableError."""
    db = Database(url)
    try:
        await db.migrate()
    except Exception as error:
        if not isinstance(error, _SchemaTooNewError | OSError):
            _log.exception("database.unusable")
        shown, why = make_url(url).render_as_string(), str(error).partition("\n")[0]
        raise DatabaseUnusableError(f"the database {shown} cannot be used: {why}") from error
    finally:
        await db.close()


def migration_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


@asynccontextmanager
async def _connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    connection = engine.connect()
    try:
        await uninterrupted(_start(connection))
        yield connection
    finally:
        # Rolls back what was not committed.
        if connection.sync_connection is not None:
            await uninterrupted(connection.close())


async def _start(connection: AsyncConnection) -> None:
    await connection.start()


async def _begin(connection: AsyncConnection) -> None:
    await connection.begin()


def _upgrade(connection: Connection) -> None:
    config = migration_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in known:
        raise _SchemaTooNewError(
            f"it was written by a newer Alcove (schema {found}; this one knows up to "
            f"{max(known)}): install that version again, or put back a backup of before"
        )
    command.upgrade(config, "head")


def _keep_private(url: str) -> Path | None:
    """Only we may read it: it holds what tenants named. SQLite gives its other files this mode.

    Returns the file that commits are written to first, if the database is a file.
    """
    path = make_url(url).database
    if not path:
        return None
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    Path(path).chmod(0o600)
    return Path(f"{path}-wal")


def _flush(file: Path) -> None:
    # Gone when the last connection has just moved all of it into the database.
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def _sqlite_engine(url: str, *, connections: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=30,
        pool_reset_on_return="rollback" if begin else None,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver's own BEGINs come late (at the first write); ours lock at once.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            # No fsync per commit: a killed process loses nothing; a power cut may take the last
            # commits (never the file's integrity), and with them go the machine's sandboxes. What
            # outlives those is written by transaction(durable=True).
            "synchronous=NORMAL",
            "busy_timeout=10000",
            "foreign_keys=ON",
            "cache_size=-16000",
            "wal_autocheckpoint=2000",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        if begin:
            connection.exec_driver_sql(begin)

    return engine

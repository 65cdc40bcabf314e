"""The database: SQLite (WAL, one writer) or PostgreSQL, the same code for both.

`transaction()` reads and writes and commits at its end; on SQLite there is one at a time.
`reading()` runs single statements outside any transaction and never waits for a writer.
`looking_up()` is the same for reads of a row or two, on the way of a request.

On SQLite, transactions and look-ups run on the event loop itself: a statement takes some 20 us, and
to hand it to a thread and wait takes ten times as long. So a transaction must be short, as it must
be anyhow where there is one writer; what may read much is `reading()`, in threads (docs/rfd/0015).
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
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
    Engine,
    Executable,
    Integer,
    MetaData,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from alcove.concurrency import spawn, uninterrupted

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
_SQLITE_LOG_BYTES = 8 << 20
"""So large the log may grow before its pages are moved into the database, by a thread."""
_SQLITE_LONG_LOG_BYTES = 4 * _SQLITE_LOG_BYTES
"""From here on writers wait for that, or it might never catch up with them."""
_SQLITE_BUSY_S = 10.0
_SQLITE_BUSY_PAUSE_S = 0.005
_POSTGRES_CONNECTIONS = 20


class DatabaseUnusableError(Exception):
    """The message names the database, without its password, and what to do if we know."""


class _SchemaTooNewError(Exception):
    """Nobody here knows what the tables mean."""


class Tx:
    """What stores take: a connection, inside a transaction or reading.

    A statement that has begun is never cancelled: the driver would leave its connection behind.
    The cancellation comes after the statement.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: AsyncConnection | Connection) -> None:
        """A plain connection is used at once, on the thread of the caller."""
        self._connection = connection

    async def execute(
        self, statement: Executable, parameters: _Parameters | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        if isinstance(self._connection, Connection):
            return self._connection.execute(statement, parameters)
        return await uninterrupted(self._connection.execute(statement, parameters))

    async def run_sync(self, work: Callable[[Connection], _T]) -> _T:
        if isinstance(self._connection, Connection):
            return work(self._connection)
        return await uninterrupted(self._connection.run_sync(work))


class Database:
    def __init__(self, url: str) -> None:
        self.is_sqlite = url.startswith("sqlite")
        # The pools hand connections to whoever comes in a lucky moment; these queues are fair.
        self._write_turn: AbstractAsyncContextManager[object] = asyncio.Lock()
        self._read_turn: AbstractAsyncContextManager[object] = asyncio.Semaphore(_SQLITE_READERS)
        self._embedded: _Embedded | None = None
        self._moving: asyncio.Task[None] | None = None
        if self.is_sqlite:
            self._embedded = _Embedded(url)
            self._reader = _sqlite_readers(url)
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
        if self._embedded is not None:
            async with self._write_turn, self._embedded.transaction() as connection:
                yield Tx(connection)
            if self._moving is None and self._embedded.log_bytes() > _SQLITE_LOG_BYTES:
                self._moving = spawn(self._move_log(self._embedded), name="database checkpoint")
            if durable:
                await asyncio.to_thread(self._embedded.flush)
            return
        async with self._write_turn, _connected(self._writer) as connection:
            await uninterrupted(_begin(connection))
            yield Tx(connection)
            await uninterrupted(connection.commit())

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Tx]:
        async with self._read_turn, _connected(self._reader) as connection:
            yield Tx(connection)

    @asynccontextmanager
    async def looking_up(self) -> AsyncIterator[Tx]:
        """For reads that touch a row or two, by an index."""
        if self._embedded is None:
            async with self.reading() as tx:
                yield tx
        else:
            with self._embedded.looking_up() as connection:
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
        if self._moving is not None:
            await asyncio.wait([self._moving])
        await self._reader.dispose()
        if self._embedded is None:
            await self._writer.dispose()
        else:
            self._embedded.close()

    async def _move_log(self, embedded: "_Embedded") -> None:
        try:
            if embedded.log_bytes() <= _SQLITE_LONG_LOG_BYTES:
                await asyncio.to_thread(embedded.move_log)
                return
            async with self._write_turn:
                await asyncio.to_thread(embedded.move_log)
        finally:
            self._moving = None


class _Embedded:
    """SQLite on the event loop: one connection that writes, and those that look something up.

    What would make the loop wait is done elsewhere: another process that writes is waited for
    between attempts, and the log is moved into the database by a thread.
    """

    def __init__(self, url: str) -> None:
        self._path = make_url(url).database or ""
        _keep_private(self._path)
        self._log_file = Path(f"{self._path}-wal")
        self._writer = self._engine(begin="BEGIN IMMEDIATE")
        self._looker = self._engine(begin="")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        # Closing rolls back what was not committed.
        with self._writer.connect() as connection:
            await self._begin(connection)
            yield connection
            connection.commit()

    def looking_up(self) -> AbstractContextManager[Connection]:
        return self._looker.connect()

    def flush(self) -> None:
        """Have everything that was committed on the disk."""
        # Gone when the last connection has just moved all of it into the database.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self._log_file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

    def log_bytes(self) -> int:
        try:
            return self._log_file.stat().st_size
        except FileNotFoundError:
            return 0

    def move_log(self) -> None:
        """Move what is in the log into the database; the next writer begins the log anew."""
        with contextlib.closing(sqlite3.connect(self._path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        self._looker.dispose()
        self._writer.dispose()

    async def _begin(self, connection: Connection) -> None:
        deadline = asyncio.get_running_loop().time() + _SQLITE_BUSY_S
        while True:
            try:
                connection.begin()
            except OperationalError as error:
                busy = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or asyncio.get_running_loop().time() > deadline:
                    raise
            else:
                return
            await asyncio.sleep(_SQLITE_BUSY_PAUSE_S)

    def _engine(self, *, begin: str) -> Engine:
        engine = create_engine(
            make_url(f"sqlite:///{self._path}"),
            poolclass=QueuePool,
            # Look-ups may overlap: each is used by one task while that one awaits other things.
            pool_size=1 if begin else _POSTGRES_CONNECTIONS,
            max_overflow=0 if begin else -1,
            pool_reset_on_return="rollback" if begin else None,
        )
        _configure(engine, begin=begin, busy_ms=0 if begin else 1000)
        return engine


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


def _keep_private(path: str) -> None:
    """Only we may read it: it holds what tenants named. SQLite gives its other files this mode."""
    if path:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        Path(path).chmod(0o600)


def _sqlite_readers(url: str) -> AsyncEngine:
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=_SQLITE_READERS,
        max_overflow=0,
        pool_timeout=30,
        pool_reset_on_return=None,
    )
    _configure(engine.sync_engine, begin="", busy_ms=10_000)
    return engine


def _configure(engine: Engine, *, begin: str, busy_ms: int) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # The driver's own BEGINs come late (at the first write); ours lock at once.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            # No fsync per commit: a killed process loses nothing; a power cut may take the last
            # commits (never the file's integrity), and with them go the machine's sandboxes. What
            # outlives those is written by transaction(durable=True).
            "synchronous=NORMAL",
            f"busy_timeout={busy_ms}",
            "foreign_keys=ON",
            "cache_size=-16000",
            # move_log() does it, where nobody waits for the disk.
            "wal_autocheckpoint=0",
            f"journal_size_limit={_SQLITE_LOG_BYTES}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if begin:
            connection.exec_driver_sql(begin)

"""What ran and what was stored, for how long and how large: the ledger invoices are made from."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table
from sqlalchemy import UniqueConstraint as Unique

from alcove.control.db import Serial, metadata

usage_entries = Table(
    "usage_entries",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("team_id", String(36), ForeignKey("teams.id"), nullable=False),
    Column("sandbox_id", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("template_id", String(64), nullable=False),
    Column("vcpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    # One life is billed once, whatever is retried.
    Unique("sandbox_id", "generation"),
    Index(None, "team_id", "opened_at"),
    sqlite_autoincrement=True,
)

storage_entries = Table(
    "storage_entries",
    metadata,
    # One snapshot is billed once, whatever is retried.
    Column("snapshot_id", String(36), primary_key=True),
    Column("team_id", String(36), ForeignKey("teams.id"), nullable=False),
    Column("sandbox_id", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    Index(None, "team_id", "opened_at"),
)

volume_entries = Table(
    "volume_entries",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("team_id", String(36), ForeignKey("teams.id"), nullable=False),
    Column("volume_id", String(36), nullable=False),
    # What was promised, not what was used: nobody else may have it.
    Column("size_mib", BigInteger, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    Index(None, "team_id", "opened_at"),
    Index("ix_volume_entries_volume_id", "volume_id"),
    sqlite_autoincrement=True,
)

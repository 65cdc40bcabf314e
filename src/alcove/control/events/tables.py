"""Table of lifecycle events: what happened, in the order it was committed."""

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, String, Table

from alcove.control.db import Serial, metadata

events = Table(
    "events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("team_id", String(36), ForeignKey("teams.id"), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("sandbox_id", String(64), nullable=False),
    Column("data", JSON, nullable=False),
    Index(None, "team_id", "id"),
    Index(None, "sandbox_id", "id"),
    sqlite_autoincrement=True,
)

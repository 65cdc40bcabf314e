"""Tables of secrets. Values are there sealed only (sealing.py)."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
)

from alcove.control.db import metadata

secrets = Table(
    "secrets",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("team_id", String(36), ForeignKey("teams.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("current_version", BigInteger, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    UniqueConstraint("team_id", "name"),
)

secret_versions = Table(
    "secret_versions",
    metadata,
    Column("secret_id", String(40), ForeignKey("secrets.id"), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

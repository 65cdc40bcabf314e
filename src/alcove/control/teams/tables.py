"""Tables of teams and their API keys."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text

from alcove.control.db import metadata

teams = Table(
    "teams",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("slug", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("concurrent_sandboxes", Integer),
    Column("created_at", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("team_id", String(36), ForeignKey("teams.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("key_hash", String(64), nullable=False, unique=True),
    Column("masked_prefix", String(8), nullable=False),
    Column("masked_suffix", String(8), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("last_used_at", BigInteger),
    Index(None, "team_id", "created_at"),
)

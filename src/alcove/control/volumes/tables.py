"""Table of volumes; what is in them is on their nodes."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, String, Table, UniqueConstraint

from alcove.control.db import metadata

volumes = Table(
    "volumes",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("team_id", String(36), ForeignKey("teams.id"), nullable=False),
    # One that is being deleted gives its name back at once: its id is in the place of it.
    Column("name", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("node_id", String(64), nullable=False),
    Column("size_mib", BigInteger, nullable=False),
    Column("inodes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("team_id", "name"),
    Index("ix_volumes_state", "state"),
)

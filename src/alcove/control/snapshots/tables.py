"""Table of snapshots: one row per saved state on a machine's disk, whoever refers to it.

Who refers to it: sandboxes that are paused or being started (sandboxes.snapshot_id, saving_id) and
template builds that show it (template_builds.snapshot_id). One that nobody refers to is removed.
"""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, String, Table

from alcove.control.db import metadata

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("team_id", String(36), ForeignKey("teams.id"), nullable=False),
    Column("node_id", String(64), nullable=False),
    # pause, checkpoint or fork: why it was taken.
    Column("kind", String(16), nullable=False),
    # creating, ready or deleting (states.py).
    Column("state", String(16), nullable=False),
    # The sandbox it shows, and in which life.
    Column("sandbox_id", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    # The snapshot that life was started from.
    Column("parent_id", String(36)),
    Column("template_id", String(64), nullable=False),
    # The build whose root file system it stands on.
    Column("build_id", String(36), nullable=False),
    Column("memory", Boolean, nullable=False),
    Column("vcpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("envd_version", String(32), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # One still being made by then was interrupted.
    Column("deadline", BigInteger, nullable=False),
    Column("ready_at", BigInteger),
    Index(None, "sandbox_id"),
    Index(None, "state"),
    Index(None, "team_id", "created_at"),
)

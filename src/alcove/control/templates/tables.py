"""Tables of templates, their names, their builds and the tags that choose a build."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
)

from alcove.control.db import Serial, metadata

templates = Table(
    "templates",
    metadata,
    Column("id", String(64), primary_key=True),
    # Templates that ship with Alcove belong to nobody and are named after their recipe.
    Column("team_id", String(36), ForeignKey("teams.id")),
    Column("recipe", String(128), unique=True),
    Column("public", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("last_spawned_at", BigInteger),
    Column("spawn_count", BigInteger, nullable=False),
    # template, or snapshot: one whose builds are saved states of sandboxes.
    Column("kind", String(16), nullable=False),
    # The sandbox an unnamed snapshot was first taken of.
    Column("origin_sandbox_id", String(64)),
    Index(None, "origin_sandbox_id"),
)

template_aliases = Table(
    "template_aliases",
    metadata,
    # A team's slug, or empty for names everybody can use bare.
    Column("namespace", String(64), primary_key=True),
    Column("alias", String(128), primary_key=True),
    Column("template_id", String(64), ForeignKey("templates.id"), nullable=False),
    Index(None, "template_id"),
)

template_builds = Table(
    "template_builds",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("template_id", String(64), ForeignKey("templates.id"), nullable=False),
    Column("node_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("vcpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("envd_version", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("ready_at", BigInteger),
    Column("finished_at", BigInteger),
    # The snapshot this build is; none: it is made from a recipe.
    Column("snapshot_id", String(36)),
    # base, a number from 1, or finalize; empty unless it failed there.
    Column("failed_step", String(32), nullable=False, server_default=""),
    Index(None, "snapshot_id"),
    Index(None, "template_id", "created_at"),
    Index(None, "state"),
)

template_tags = Table(
    "template_tags",
    metadata,
    Column("template_id", String(64), ForeignKey("templates.id"), primary_key=True),
    Column("tag", String(128), primary_key=True),
    Column("build_id", String(36), ForeignKey("template_builds.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

# What a team's build is made of; builds of shipped recipes and snapshots have none.
template_build_plans = Table(
    "template_build_plans",
    metadata,
    Column("build_id", String(36), ForeignKey("template_builds.id"), primary_key=True),
    Column("team_id", String(36), nullable=False),
    # wire/builds.py
    Column("plan", JSON, nullable=False),
    Index(None, "team_id"),
)

# Which build a team gave which tag, in the order it did; template_tags has what follows from it.
template_tag_assignments = Table(
    "template_tag_assignments",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("template_id", String(64), ForeignKey("templates.id"), nullable=False),
    Column("tag", String(128), nullable=False),
    Column("build_id", String(36), ForeignKey("template_builds.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index(None, "template_id", "tag", "id"),
    Index(None, "build_id"),
    sqlite_autoincrement=True,
)

# What machines said while they built; the build's own table says how it ended.
template_build_logs = Table(
    "template_build_logs",
    metadata,
    Column("build_id", String(36), ForeignKey("template_builds.id"), primary_key=True),
    # Grows by one from 1: a client asks for what follows the first so many.
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("level", String(8), nullable=False),
    Column("step", String(32), nullable=False),
    Column("message", Text, nullable=False),
)

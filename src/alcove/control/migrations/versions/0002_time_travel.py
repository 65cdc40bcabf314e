"""Pause, resume, snapshots and lineage. Old sandboxes become roots of their own trees."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_DEFAULT_TIMEOUT_S = "300"


def upgrade() -> None:
    _sandboxes()
    _template_snapshots()
    _snapshots()
    _storage_entries()


def _sandboxes() -> None:
    # Each with a default: a control of the version before may still be writing.
    for column in (
        sa.Column("timeout_s", sa.BigInteger(), nullable=False, server_default=_DEFAULT_TIMEOUT_S),
        sa.Column("auto_pause", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("auto_pause_memory", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("auto_resume", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("idle_after_s", sa.Integer(), nullable=True),
        sa.Column("idle_action", sa.String(length=8), nullable=True),
        sa.Column("freeze_after_s", sa.Integer(), nullable=True),
        sa.Column("snapshot_id", sa.String(length=36), nullable=True),
        sa.Column("saving_id", sa.String(length=36), nullable=True),
        sa.Column("paused_at", sa.BigInteger(), nullable=True),
        sa.Column("pause_reason", sa.String(length=16), nullable=True),
        sa.Column("pause_memory", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("unresponsive", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("boots", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("root_id", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("parent_id", sa.String(length=64), nullable=True),
        sa.Column("origin_snapshot_id", sa.String(length=36), nullable=True),
        sa.Column("depth", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("changes", sa.JSON(), nullable=False, server_default="{}"),
    ):
        op.add_column("sandboxes", column)
    op.execute("UPDATE sandboxes SET root_id = id")
    for name in ("root_id", "snapshot_id", "saving_id"):
        op.create_index(op.f(f"ix_sandboxes_{name}"), "sandboxes", [name])


def _template_snapshots() -> None:
    op.add_column(
        "templates",
        sa.Column("kind", sa.String(length=16), nullable=False, server_default="template"),
    )
    op.add_column("templates", sa.Column("origin_sandbox_id", sa.String(length=64), nullable=True))
    op.add_column("template_builds", sa.Column("snapshot_id", sa.String(length=36), nullable=True))
    op.create_index(op.f("ix_templates_origin_sandbox_id"), "templates", ["origin_sandbox_id"])
    op.create_index(op.f("ix_template_builds_snapshot_id"), "template_builds", ["snapshot_id"])


def _snapshots() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("team_id", sa.String(length=36), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("sandbox_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=36), nullable=True),
        sa.Column("template_id", sa.String(length=64), nullable=False),
        sa.Column("build_id", sa.String(length=36), nullable=False),
        sa.Column("memory", sa.Boolean(), nullable=False),
        sa.Column("vcpu_count", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("disk_mib", sa.Integer(), nullable=False),
        sa.Column("envd_version", sa.String(length=32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=False),
        sa.Column("ready_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_snapshots_team_id_teams")),
    )
    op.create_index(op.f("ix_snapshots_sandbox_id"), "snapshots", ["sandbox_id"])
    op.create_index(op.f("ix_snapshots_state"), "snapshots", ["state"])
    op.create_index(op.f("ix_snapshots_team_id_created_at"), "snapshots", ["team_id", "created_at"])


def _storage_entries() -> None:
    op.create_table(
        "storage_entries",
        sa.Column("snapshot_id", sa.String(length=36), nullable=False),
        sa.Column("team_id", sa.String(length=36), nullable=False),
        sa.Column("sandbox_id", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_storage_entries")),
        sa.ForeignKeyConstraint(
            ["team_id"], ["teams.id"], name=op.f("fk_storage_entries_team_id_teams")
        ),
    )
    op.create_index(
        op.f("ix_storage_entries_team_id_opened_at"), "storage_entries", ["team_id", "opened_at"]
    )

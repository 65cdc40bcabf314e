"""Volumes of teams, what they take, and which sandboxes mount them."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "volumes",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("team_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("size_mib", sa.BigInteger(), nullable=False),
        sa.Column("inodes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volumes")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_volumes_team_id_teams")),
        sa.UniqueConstraint("team_id", "name", name=op.f("uq_volumes_team_id_name")),
    )
    op.create_index("ix_volumes_state", "volumes", ["state"])
    _volume_entries()
    with op.batch_alter_table("sandboxes") as table:
        table.add_column(sa.Column("mounts", sa.JSON(), nullable=False, server_default="{}"))


def _volume_entries() -> None:
    op.create_table(
        "volume_entries",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("team_id", sa.String(length=36), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("size_mib", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_entries")),
        sa.ForeignKeyConstraint(
            ["team_id"], ["teams.id"], name=op.f("fk_volume_entries_team_id_teams")
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_volume_entries_team_id_opened_at"), "volume_entries", ["team_id", "opened_at"]
    )
    op.create_index("ix_volume_entries_volume_id", "volume_entries", ["volume_id"])

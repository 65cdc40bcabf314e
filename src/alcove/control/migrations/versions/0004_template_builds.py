"""Builds that teams ask for: what they are made of, where they failed, and who was tagged when."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column(
        "template_builds",
        sa.Column("failed_step", sa.String(length=32), nullable=False, server_default=""),
    )
    _build_plans()
    _tag_assignments()


def _build_plans() -> None:
    op.create_table(
        "template_build_plans",
        sa.Column("build_id", sa.String(length=36), nullable=False),
        sa.Column("team_id", sa.String(length=36), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("build_id", name=op.f("pk_template_build_plans")),
        sa.ForeignKeyConstraint(
            ["build_id"],
            ["template_builds.id"],
            name=op.f("fk_template_build_plans_build_id_template_builds"),
        ),
    )
    op.create_index(op.f("ix_template_build_plans_team_id"), "template_build_plans", ["team_id"])


def _tag_assignments() -> None:
    op.create_table(
        "template_tag_assignments",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("template_id", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("build_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_template_tag_assignments")),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["templates.id"],
            name=op.f("fk_template_tag_assignments_template_id_templates"),
        ),
        sa.ForeignKeyConstraint(
            ["build_id"],
            ["template_builds.id"],
            name=op.f("fk_template_tag_assignments_build_id_template_builds"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_template_tag_assignments_template_id_tag_id"),
        "template_tag_assignments",
        ["template_id", "tag", "id"],
    )
    op.create_index(
        op.f("ix_template_tag_assignments_build_id"), "template_tag_assignments", ["build_id"]
    )

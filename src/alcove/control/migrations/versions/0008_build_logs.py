"""Logs of template builds, which outlive the machine that wrote them."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "template_build_logs",
        sa.Column("build_id", sa.String(length=36), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.String(length=8), nullable=False),
        sa.Column("step", sa.String(length=32), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("build_id", "sequence", name=op.f("pk_template_build_logs")),
        sa.ForeignKeyConstraint(
            ["build_id"],
            ["template_builds.id"],
            name=op.f("fk_template_build_logs_build_id_template_builds"),
        ),
    )

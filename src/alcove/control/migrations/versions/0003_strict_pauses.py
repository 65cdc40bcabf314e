"""A pause that was interrupted is finished as it was asked for: refused if the agent is silent."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column(
        "sandboxes",
        # With a default: a control of the version before may still be writing.
        sa.Column("pause_strict", sa.Boolean(), nullable=False, server_default=sa.false()),
    )

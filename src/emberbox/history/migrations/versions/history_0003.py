"""What hooks, policy and people decided of an execution."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; nothing is known of older entries."""
    op.add_column("history_entries", sa.Column("decisions", sa.Text()))

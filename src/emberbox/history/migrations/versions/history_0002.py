"""What was undone: the snapshot before an execution, and the one that the sandbox was taken back to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; nothing is known of older entries."""
    op.add_column("history_entries", sa.Column("snapshot_before_id", sa.String(64)))
    op.add_column("history_entries", sa.Column("rolled_back_to", sa.String(64)))

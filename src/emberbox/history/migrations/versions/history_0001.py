"""Entries and the audit chain."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "history_entries",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("parent_id", sa.String(64)),
        sa.Column("vm_id", sa.String(200)),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("backend", sa.String(64)),
        sa.Column("language", sa.String(100), nullable=False),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("success", sa.Boolean, nullable=False),
        sa.Column("blocked_by", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("exit_code", sa.BigInteger),
        sa.Column("termination_reason", sa.String(64)),
        sa.Column("stdout", sa.Text, nullable=False),
        sa.Column("stderr", sa.Text, nullable=False),
        sa.Column("stdout_truncated", sa.Boolean, nullable=False),
        sa.Column("stderr_truncated", sa.Boolean, nullable=False),
        sa.Column("executed_at", sa.String(32), nullable=False),
        sa.Column("duration_ms", sa.Double),
        sa.Column("memory_peak_mb", sa.Double),
        sa.Column("snapshot_id", sa.String(64)),
        sa.Column("changed_files", sa.Text),
    )
    op.create_index("history_entries_number", "history_entries", ["number"])
    op.create_index("history_entries_vm", "history_entries", ["vm_id", "number"])
    op.create_index("history_entries_state", "history_entries", ["state"])
    op.create_table(
        "history_links",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("entry_id", sa.String(64), nullable=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("content", sa.String(64), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )

"""Run by Alembic inside the transaction of the connection that `database.migrate` gives it."""

from __future__ import annotations

from alembic import context

from emberbox.history.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()

"""Alembic's environment. It has no configuration file: `database.migrate` hands it an open connection."""

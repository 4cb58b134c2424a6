"""Durable sandboxes: persisted on change, suspended when idle, recovered after a restart."""

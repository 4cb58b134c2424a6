"""What was executed: rows, retention, audit chain. SQLAlchemy is imported only when a history is opened."""

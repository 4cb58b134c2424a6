"""Snapshots of sandboxes: taken, kept, compared, rolled back to, forked from."""

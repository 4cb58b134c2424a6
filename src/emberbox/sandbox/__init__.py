"""Sandboxes: a machine with its guest agent, made, used, timed out and reaped. Knows no back end by name."""

"""What executes code: one kernel per language, each in processes of the user."""

"""What machines start from: templates (TOML), the builder of their root file systems, and the cache of both."""

"""Experiments: one `get_config()` per file, which starts from `default` and lists only what differs."""

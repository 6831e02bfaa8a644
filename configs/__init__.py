"""Experiments: one `get_config()` a file; each starts from `default` and states only what differs."""

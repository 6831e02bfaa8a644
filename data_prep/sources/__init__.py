"""TODO data_prep/sources."""

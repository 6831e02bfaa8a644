"""TODO data_prep/inspect."""

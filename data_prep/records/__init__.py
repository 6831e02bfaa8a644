"""TODO data_prep/records."""

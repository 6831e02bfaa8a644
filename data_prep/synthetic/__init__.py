"""TODO data_prep/synthetic."""

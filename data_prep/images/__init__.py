"""TODO data_prep/images."""

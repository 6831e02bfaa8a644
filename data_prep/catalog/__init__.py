"""TODO data_prep/catalog."""

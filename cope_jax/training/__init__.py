"""Training: config → mesh, sharded state, jitted step, checkpoints, metrics."""

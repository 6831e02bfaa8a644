"""TODO cope_jax/training/supervision."""

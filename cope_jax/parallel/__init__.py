"""TODO cope_jax/parallel."""

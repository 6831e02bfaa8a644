"""TODO cope_jax/search."""

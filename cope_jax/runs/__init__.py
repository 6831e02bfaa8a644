"""TODO cope_jax/runs."""

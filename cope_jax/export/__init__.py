"""TODO cope_jax/export."""

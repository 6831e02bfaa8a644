"""TODO cope_jax/evaluation/report."""

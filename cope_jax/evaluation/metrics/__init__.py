"""TODO cope_jax/evaluation/metrics."""

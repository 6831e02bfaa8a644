"""TODO cope_jax/models/backbones."""

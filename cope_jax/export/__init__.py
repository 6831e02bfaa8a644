"""Export for serving: `python -m cope_jax.export`.

`stablehlo` writes the weights as safetensors and one program per domain. `cope_jax.exported` runs them without the
rest of this package.
"""

"""Losses on embeddings: pure functions of arrays and learnable scalars.

sigmoid     SigLIP's loss            \\ over weighted pairs of views (`pairs`), with the batch
infonce     InfoNCE with smoothing   / sharded over a ring of devices (`ring`)
classifier  CosFace over all training products, with a class table that is sharded over all devices
"""

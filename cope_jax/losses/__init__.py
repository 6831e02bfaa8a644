"""Losses on embeddings: pure functions of arrays and their learnable scalars."""

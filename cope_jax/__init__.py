"""Cross-domain product embeddings (COPE, arXiv 2308.05550) in JAX.

Dimension letters used in docstrings and in names such as `tokens_BND`:

    B  examples of a batch       T  frames of a clip        H W  image height and width
    N  tokens of one frame       L  tokens of a text        K    attention heads
    D  width of an encoder       E  width of an embedding   M    products an item may belong to
    P  products                  Q  queries                 G    gallery items

Data flows one way: `data` makes uint8 batches, `models` turns them into embeddings, `losses` compares those,
`training` and `evaluation` put the pieces together from a config.
"""

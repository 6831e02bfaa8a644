"""From a release (text files and images) to array records; knows nothing of jax nor of the model.

`catalog` checks and joins the text files of a release, `table` a table of one's own products, `images` judges encoded
images, `shards` writes records, `rope` is the TFDS builder over them, `build` the command that builds everything.
"""

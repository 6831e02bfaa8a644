"""From a release (text files and images) to array records; knows nothing of jax nor of the model.

`release` reads and checks the text files, `images` judges encoded images, `shards` writes records, `rope` is
the TFDS builder over them, `build` the command that builds everything.
"""

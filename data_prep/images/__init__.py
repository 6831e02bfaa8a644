"""Images of frames: finding, reading and checking them.

decoding   rules for images: which are valid, how they decode to upright RGB, and how they are shrunk
sources    images in folders and in the tar shards of a download
index      frame → place of its image in the sources → bytes
"""

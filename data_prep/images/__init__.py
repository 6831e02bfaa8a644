"""Images of frames: finding, reading and checking them.

decoding   rules for images: which are valid, and how they decode to upright RGB
shrinking  large images → small JPEGs
sources    images in folders and in the tar shards of a download
index      frame → place of its image in the sources → bytes
"""

"""Pretrained weights for the encoders.

Each family of models (`xclip`, `clip`, `siglip`, `bert`) is one file: the settings that the model must share or takes
over, among them those of preprocessing and texts, and its map from parameters to tensors. `load` finds the family by
the model type in config.json and matches weights with an encoder, `files` finds and reads safetensors files, `layouts`
rearranges torch's tensors, and `open_clip` translates another layout of files.
"""

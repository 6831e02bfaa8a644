"""Pretrained weights for the encoders.

A family of models (`xclip`, `clip`, `chinese_clip`, `bert`) is one file: the model types of its config.json, the
settings that the model must share, and its map from parameters to tensors; `families` lists them. `load` matches them
with an encoder, `files` finds and reads safetensors files, `layouts` rearranges torch's tensors.
"""

"""The COPE model in Flax NNX.

cope       `CopeModel`: shared encoders and one fusion head per domain
vision     a ViT of CLIP or SigLIP over the frames of clips; `stems`: pixels to tokens
text       BERT, or the text tower of CLIP or SigLIP
fusion     fusion heads and the embeddings they return
layers     attention, MLP, transformer blocks, stacks of blocks
dropout    dropout with a random key per example
backbones  pretrained weights for the encoders
"""

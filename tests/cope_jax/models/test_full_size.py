"""The authors' sizes, by shape alone: nothing is computed."""

import jax

from configs import default
from cope_jax.training.model import split_model


def test_the_default_model_has_the_sizes_of_its_parts():
    """ViT-B/16 of CLIP: 86 M. Messages: 12 · (4 + 1) · 768² and biases and norms. RBT3 with 21,128 words: 38 M."""
    _, initialise = split_model(default.get_config(), vocab_size=21128)
    params = jax.eval_shape(initialise).params
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params}
    vit = 3 * 16 * 16 * 768 + 768 + 197 * 768 + 4 * 768 + 12 * (12 * 768**2 + 13 * 768) + 768 * 512
    messages = 12 * (5 * 768**2 + 5 * 768 + 2 * 768)
    integration = 8 * 512 + 12 * 512**2 + 13 * 512
    assert count["vision"] == vit + messages + integration
    bert = (21128 + 32 + 2) * 768 + 2 * 768 + 3 * (12 * 768**2 + 13 * 768) + 768**2 + 768
    assert count["text"] == bert
    assert count["fusion"] == 3 * (512 * 128 + 768 * 128 + 256 * 128 + 3 * 128)

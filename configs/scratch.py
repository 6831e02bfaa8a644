"""Base of experiments from scratch on a few CPU cores: small images, a conv stem and one text layer.

Not an experiment of its own; demo.py and grocery.py start from it.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns a small model at 64 px, trained with 64 products per step and evaluated on four frames per clip."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "data.image_size": 64,
            "data.vocab_size": 2000,
            # One thread keeps up with images this small and leaves the cores to the training step.
            "data.threads": 1,
            "model.head_norm": "batch",
            "model.principal_axes": True,  # so that the first 32 values of embeddings do without the others
            "model.scan_layers": False,  # with one or two layers, 4% less time per step and no longer to compile
            "model.vision.stem": "conv",
            "model.vision.pooling": "mean",
            "model.text.depth": 1,
            "model.text.heads": 2,
            "model.text.pooling": "mean",
            # An untrained model is right on average with this β: −log of the number of negatives in a batch.
            "losses.sigmoid.bias": -4.0,
            "optimizer.warmup_steps": 30,
            "optimizer.clip_norm": 1.0,
            "train.batch_size": 64,
            "train.log_every": 20,
            "train.checkpoint_every": 100,
            "eval.frames.video": 4,
            "eval.frames.live": 4,
            "eval.batch_size": 64,
        }
    )
    return config.lock()

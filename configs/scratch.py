"""What experiments from scratch on a few CPU cores have in common: small images, a convolutional stem, one text layer.

No experiment by itself: demo.py and grocery.py start from it.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """A small model at 64 px, trained with 64 products a step, evaluated on four frames a clip."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "data.image_size": 64,
            "data.vocab_size": 2000,
            # Of small images a second thread makes no more: both wait for Python's lock, and training for them.
            "data.threads": 1,
            "model.head_norm": "batch",
            "model.scan_layers": False,  # one or two layers: 4% less time a step, and no longer to compile
            "model.vision.stem": "conv",
            "model.vision.pooling": "mean",
            "model.text.depth": 1,
            "model.text.heads": 2,
            "model.text.pooling": "mean",
            # β where a model that knows nothing is already right on average: −log of the batch's negatives.
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

"""The demo."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    with config.unlocked():
        config.data.image_size = 64
        config.data.frames = ConfigDict({"page": 1, "video": 2, "live": 2})
        config.data.vocab_size = 2000
        config.data.text_length = 48
        config.data.threads = 2
        config.model.head_norm = "batch"
        v = config.model.vision
        v.pooling = "mean"
        v.stem = "conv"
        v.patch_size = 16
        v.stem_widths = (48, 96, 192)
        v.stem_blocks = (0, 1, 1)
        v.width, v.depth, v.heads = 192, 1, 3
        v.output_width, v.integration_heads = 192, 3
        t = config.model.text
        t.width, t.depth, t.heads, t.pooling = 128, 2, 2, "mean"
        config.optimizer.rate = 1e-3
        config.loss.temperature, config.loss.bias = 10.0, -4.0
        config.optimizer.warmup_steps = 30
        config.optimizer.weight_decay = 0.05
        config.optimizer.clip_norm = 1.0
        config.train.batch_size = 64
        config.train.steps = 400
        config.train.log_every = 20
        config.train.checkpoint_every = 100
        config.eval.frames = ConfigDict({"page": 1, "video": 4, "live": 4})
        config.eval.batch_size = 64
    return config.lock()

"""Real photos from scratch."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    with config.unlocked():
        config.data.image_size = 64
        config.data.frames = ConfigDict({"page": 1, "video": 2, "live": 2})
        config.data.short_clips = "mask"
        config.data.crop_scale = (0.3, 1.0)
        config.data.colour_jitter = 0.3
        config.data.vocab_size = 2000
        config.data.text_length = 48
        config.data.threads = 2
        config.model.text_domains = ("page",)
        config.model.head_norm = "batch"
        v = config.model.vision
        v.pooling = "mean"
        v.stem = "conv"
        v.patch_size = 16
        v.stem_widths = (64, 128, 256)
        v.stem_blocks = (0, 1, 2)
        v.width, v.depth, v.heads = 256, 2, 4
        v.output_width, v.integration_heads = 256, 4
        v.drop_path = 0.1
        t = config.model.text
        t.width, t.depth, t.heads, t.pooling = 128, 1, 2, "mean"
        config.optimizer.rate = 1e-3
        config.loss.temperature, config.loss.bias = 10.0, -4.0
        config.optimizer.warmup_steps = 30
        config.optimizer.weight_decay = 0.1
        config.optimizer.clip_norm = 1.0
        config.train.batch_size = 64
        config.train.steps = 440
        config.train.log_every = 20
        config.train.checkpoint_every = 100
        config.eval.frames = ConfigDict({"page": 1, "video": 4, "live": 4})
        config.eval.batch_size = 64
    return config.lock()

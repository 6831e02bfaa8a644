"""Real photos from scratch: GroceryStoreDataset's studio images as pages, its shop photos as videos and lives.

    ./run.sh grocery PATH

Expected result: R@1 of 0.4 to 0.5 for video→page and live→page on the validation photos (chance: 0.012).
"""

from ml_collections import ConfigDict

from configs import scratch


def get_config() -> ConfigDict:
    """Returns a small ViT with a conv stem at 128 px, with one photo per clip in training and four in evaluation."""
    config = scratch.get_config()
    config.update_from_flattened_dict(
        {
            "data.image_size": 128,  # twice the demo's side finds far more of the photos
            "data.frames.video": 1,
            "data.frames.live": 1,
            "data.short_clips": "mask",
            "data.resize": "zoom",
            "data.crop_scale": (0.3, 1.0),
            "data.colour_jitter": 0.3,
            "data.text_length": 48,
            "losses.classifier.weight": 0.1,  # the sigmoid loss or InfoNCE alone are worse here
            "model.text_domains": ("page",),
            "model.vision.stem_widths": (48, 96, 192),
            "model.vision.stem_blocks": (0, 1, 2),
            "model.vision.width": 192,
            "model.vision.depth": 1,
            "model.vision.heads": 4,
            "model.vision.output_width": 192,
            "model.vision.cross_frame": False,
            "model.vision.integration_depth": 0,
            "model.text.width": 128,
            "optimizer.rate": 2e-3,
            "optimizer.weight_decay": 0.1,
            "train.steps": 500,
        }
    )
    return config.lock()

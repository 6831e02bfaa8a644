"""The authors' recipe on ROPE: X-CLIP ViT-B/16 and RBT3 from published weights, 128 products per step.

  ./run.sh train --config=configs/cope_rope.py --dry_run --config.mesh.data=16 --config.losses.classifier.classes=187431
  ./run.sh train --config=configs/cope_rope.py --workdir=runs/cope_rope --config.data.data_dir=data/rope

The authors trained on 16 GPUs with 8 products each. Their losses are InfoNCE, over pairs of domains and over page texts
and images alone with videos and lives, and a classification of all training products. Not yet trained to the end.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the default config, which has the authors' sizes and schedule, with their weights and losses."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "data.tokenizer": "hfl/rbt3",
            "data.vocab_size": 21128,  # size of that tokenizer, for dry runs without it
            "model.dtype": "bfloat16",  # the authors' mixed precision
            "model.text_domains": ("page",),
            "model.vision.integration_depth": 4,  # the published weights have 1; the others are random
            "model.vision.init_from": "microsoft/xclip-base-patch16-kinetics-600",
            "model.text.init_from": "hfl/rbt3",
            "losses.sigmoid.weight": 0.0,
            "losses.infonce.weight": 1.0,  # with the default's temperature, smoothing and pairs
            "losses.classifier.weight": 1.0,  # with the default's scale and margin
            "optimizer.rate": 5e-3,
            "optimizer.groups": ((r"^model/vision/", 2e-3), (r"^model/text/", 1e-3), (r"", 1.0)),
        }
    )
    return config.lock()

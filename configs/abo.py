"""SigLIP 2 B/16 on Amazon Berkeley Objects, fine-tuned on one GPU of 80 GB.

    ./run.sh abo FOLDER --out=data/abo_catalog
    ./run.sh build --catalog=data/abo_catalog --images=FOLDER --data_dir=data/abo --name=abo --max_side=320
    ./run.sh train --config=configs/abo.py --workdir=runs/abo

Not trained yet: nobody has published training on this task. The schedule is ten passes over its products.
"""

from ml_collections import ConfigDict

from configs import default

DOMAINS = {"page": "image", "photos": "image", "spin": "clip"}
PAIRS = (
    ("page", "spin", 1.0),
    ("page", "photos", 1.0),
    ("photos", "spin", 1.0),
    ("page.text", "page.vision", 0.5),  # for queries in words
)


def get_config() -> ConfigDict:
    """Returns full fine-tuning at 224 px, with 8 of the frames of a turntable sequence."""
    fields = default.get_config().to_dict()
    frames = {"page": 1, "photos": 1, "spin": 8}
    fields["data"] |= {"data_dir": "data/abo", "domains": DOMAINS, "frames": frames}
    fields["eval"]["frames"] = frames
    fields["losses"]["sigmoid"]["pairs"] = PAIRS
    config = ConfigDict(fields)
    config.update_from_flattened_dict(
        {
            "model.init_from": "google/siglip2-base-patch16-224",
            "model.text_domains": ("page",),
            "model.dtype": "bfloat16",
            "model.remat": "narrow",
            "finetune.layer_decay": 0.75,
            "optimizer.rate": 2e-5,
            "optimizer.b2": 0.95,
            "optimizer.warmup_steps": 500,
            "optimizer.clip_norm": 1.0,
            "train.batch_size": 128,
            "train.steps": 10_000,
        }
    )
    return config.lock()

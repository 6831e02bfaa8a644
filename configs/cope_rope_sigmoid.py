"""Our recipe on ROPE: the authors' model and the sigmoid loss, text in every domain, batches eight times as large.

    ./run.sh train --config=configs/cope_rope_sigmoid.py --dry_run --config.mesh.data=8
    ./run.sh train --config=configs/cope_rope_sigmoid.py --workdir=runs/sigmoid --config.data.data_dir=data/rope

Speech says what a clip's frames do not show (as AMPere found, arXiv 2408.02978), and the sigmoid loss gains from
batches of a thousand and more (arXiv 2303.15343). Not yet run at full length: rates and steps are chosen, not tuned.
"""

from ml_collections import ConfigDict

from configs import cope_rope


def get_config() -> ConfigDict:
    """The authors' recipe but for losses, text, batch and schedule."""
    config = cope_rope.get_config()
    config.update_from_flattened_dict(
        {
            "data.text_length": 64,  # speech is longer than titles
            "losses.sigmoid.weight": 1.0,
            "losses.infonce.weight": 0.0,
            "losses.classifier.weight": 0.0,
            "model.remat": "block",  # a third more arithmetic; 128 products then fit on a device of 80 GB
            "model.text_domains": ("page", "video", "live"),
            "optimizer.rate": 1e-2,  # twice the authors' for eight times the batch
            "train.batch_size": 1024,
            "train.steps": 12_500,  # 12.8 million products: twice as many as the authors' 50,000 steps
        }
    )
    return config.lock()

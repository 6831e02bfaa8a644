"""The authors' recipe on ROPE, as their release (adxcreative/COPE at c46a6a3) computes it: 128 products per step.

  ./run.sh train --config=configs/cope_rope.py --dry_run --config.mesh.data=16 --config.losses.classifier.classes=187431
  ./run.sh train --config=configs/cope_rope.py --workdir=runs/cope_rope --config.data.data_dir=data/rope

Followed:
- X-CLIP ViT-B/16 of Kinetics-600 with four integration blocks, of which three start random. A page's single frame takes
  all eight positions of the integration. No stochastic depth.
- RBT6 with the tokenizer of RBT3, 32 tokens, dropout 0.1 of hidden states and attention weights. Only pages have texts.
  For the three layers of the paper: --config.model.text.depth=3 --config.model.text.init_from=hfl/rbt3.
- InfoNCE over pairs of domains, and over page texts and images alone with videos and lives: temperature 0.05, label
  smoothing 0.1. CosFace over all training products: scale 64, margin 0.4.
- Frames at the centers of eight segments, one crop (0.64 to 1 of the area) and flip per clip, ImageNet's mean and
  deviation. The noise in titles is off, as it is without their losses between two items of a product
  (--config.data.text_noise=0.6 turns it on).
- AdamW with betas (0.9, 0.999) and decay 0.01 of all parameters, including biases, norms and the class table; rate 5e-3
  with factors 1e-3 for the text encoder and 2e-3 for vision; a bound of 5 on the gradient of the model alone.

Inferred, because the release cannot run (files are missing, and its flags name losses that it does not compute):
- Both losses have weight 1, the flags' usual value. Their gather of embeddings passes on only a process's own part of
  the gradient, so InfoNCE arrives at 1/16 on their 16 GPUs and the classifier in full: hence the weights 1/16 and 1.
- The schedule (warm-up of 1,000 steps, cosine to 0 at 50,000) is that of their script.

Different on purpose:
- Training ends at 50,000 steps, when the rate is 0. Theirs goes on for 100 epochs while the cosine rises again, and
  they use epoch 70, at about 103,000 steps: --config.train.steps=103000 --config.optimizer.cosine_steps=50000.
- Another item of the same product is never a negative. In the release, every other row is one.
- Missing texts are masked; in the release, the word for "empty" is their text.
- bfloat16 without loss scaling instead of float16; OpenCV's resizing instead of Pillow's.

Not yet trained to the end.
"""

from ml_collections import ConfigDict

from configs import default

GROUPS = ((r"^model/vision/", 2e-3), (r"^model/text/", 1e-3), (r"", 1.0))


def get_config() -> ConfigDict:
    """Returns the default config, which has the authors' sizes, with their weights, losses and optimizer."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "data.frame_choice": "center",
            "data.tokenizer": "hfl/rbt3",
            "data.vocab_size": 21128,  # size of that tokenizer, for dry runs without it
            "model.dtype": "bfloat16",
            "model.remat": "narrow",  # 128 products fit one GPU with 80 GB, and 16 per device a TPU v5e
            "model.text_domains": ("page",),
            "model.vision.broadcast_single_frame": True,
            "model.vision.integration_depth": 4,  # the published weights have 1; the others are random
            "model.vision.init_from": "microsoft/xclip-base-patch16-kinetics-600",
            "model.text.init_from": "hfl/rbt6",
            "model.text.depth": 6,
            "model.text.attention_dropout": 0.1,
            "losses.sigmoid.weight": 0.0,
            "losses.infonce.weight": 1 / 16,  # with the default's temperature, smoothing and pairs
            "losses.classifier.weight": 1.0,  # with the default's scale and margin
            "optimizer.rate": 5e-3,
            "optimizer.groups": GROUPS,
            "optimizer.b2": 0.999,
            "optimizer.weight_decay": 0.01,
            "optimizer.decayed": "",
            "optimizer.clipped": "^model/",
        }
    )
    return config.lock()

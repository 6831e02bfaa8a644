"""A sample of Amazon Berkeley Objects from scratch, on a few CPU cores: about 1,000 products, or a fixture.

./run.sh train --config=configs/abo_small.py --workdir=runs/abo_small
"""

from ml_collections import ConfigDict

from configs import abo, demo


def get_config() -> ConfigDict:
    """Returns the demo's model at 64 px, with two frames of a turntable sequence in training and four in evaluation."""
    fields = demo.small_model().to_dict()
    fields["data"] |= {"data_dir": "data/abo", "domains": abo.DOMAINS, "frames": {"page": 1, "photos": 1, "spin": 2}}
    fields["eval"]["frames"] = {"page": 1, "photos": 1, "spin": 4}
    fields["losses"]["sigmoid"]["pairs"] = abo.PAIRS
    fields["model"]["text_domains"] = ("page",)
    return ConfigDict(fields).lock()

"""Trains on your own catalog, with any domains, from scratch.

    ./run.sh train --config=configs/catalog.py:data/shop --workdir=runs/shop

The path after the colon is the data folder, as of `./run.sh build`; the domains and their kinds are read from it.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import scratch
from configs.default import use_domains
from data_prep.common.domains import find_data_set, read_domains


def get_config(data_dir: str = "data") -> ConfigDict:
    """Returns the settings for training from scratch, for the domains of a data set."""
    config = scratch.get_config()
    config.data.data_dir = data_dir
    use_domains(config, read_domains(find_data_set(Path(data_dir))))
    return config.lock()

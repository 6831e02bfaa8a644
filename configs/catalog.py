"""Trains a small model on your own catalog, with any domains, from scratch.

    ./run.sh train --config=configs/catalog.py:data/shop --workdir=runs/shop

The path after the colon is the data folder, as of `./run.sh build`; the domains and their kinds are read from it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import demo
from data_prep.common.domains import find_data_set, read_domains


def get_config(data_dir: str = "data") -> ConfigDict:
    """Returns the settings of the demo for the domains of a data set."""
    fields = demo.get_config().to_dict()
    fields["data"]["data_dir"] = data_dir
    use_domains(fields, read_domains(find_data_set(Path(data_dir))))
    return ConfigDict(fields).lock()


def use_domains(fields: dict[str, Any], domains: Mapping[str, str]) -> None:
    """Changes the fields per domain to those of a data set, given as domain → kind; all of its texts are used."""
    for section in (fields["data"], fields["eval"]):
        counts = {"image": section["frames"]["page"], "clip": section["frames"]["video"]}
        section["frames"] = {domain: counts[kind] for domain, kind in domains.items()}
    fields["data"]["domains"] = dict(domains)
    fields["model"]["text_domains"] = tuple(domains)

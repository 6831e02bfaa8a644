"""Domains, the places in which products are shown, and the ways to pair them.

A data set names its domains in domains.json: {"page": "image", "spin": "clip"}. Frames of an image domain are pictures,
the main one first; frames of a clip domain are moments in time order. The order of domains depends on their names only.
"""

import json
import re
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

from data_prep.common.files import atomic_write, read_json

KINDS = ("image", "clip")
ROPE_DOMAINS = {"page": "image", "video": "clip", "live": "clip"}  # also of data sets without domains.json
DOMAINS = tuple(ROPE_DOMAINS)
DOMAINS_FILE = "domains.json"
# Keys of batches and names of files and metrics.
RESERVED = {"product", "product_id", "product_class", "bad_items", "item_id", "row", "frame_count", "all", "ids"}


def sort_domains(names: Iterable[str]) -> tuple[str, ...]:
    """Returns domains in the order used everywhere: page, video, live, then the others by name."""
    return tuple(sorted(names, key=lambda name: (DOMAINS.index(name) if name in DOMAINS else len(DOMAINS), name)))


def is_domain_name(name: object) -> bool:
    """Returns whether a domain may have this name: lower-case letters, digits and underscores, as in "web_shop"."""
    if not isinstance(name, str):
        return False
    derived = name.endswith(("_text", "_vision", "_2")) or "_to_" in name  # names of views, second items, directions
    return bool(re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name)) and name not in RESERVED and not derived


def check_domains(kinds: Mapping[str, str], source: object) -> dict[str, str]:
    """Returns domain → kind in order; raises ValueError, naming `source`, if there are none or one is invalid."""
    if not isinstance(kinds, Mapping) or not kinds:
        raise ValueError(f"{source} has no domains; name at least one, such as page:image")
    for name, kind in kinds.items():
        if not is_domain_name(name):
            raise ValueError(
                f"{source} has the domain {name!r}; names are lower-case letters, digits and _, start with a letter, "
                f'have no "_to_", do not end in _text, _vision or _2, and are not {", ".join(sorted(RESERVED))}'
            )
        if kind not in KINDS:
            raise ValueError(f"{source} has the domain {name} of kind {kind!r}; choose one of {', '.join(KINDS)}")
    return {name: kinds[name] for name in sort_domains(kinds)}


def parse_domains(words: Iterable[str], source: str = "--domains") -> dict[str, str]:
    """Parses ["spin:clip", "page:image"] to {"page": "image", "spin": "clip"}."""
    return check_domains({name: kind for name, _, kind in (word.partition(":") for word in words)}, source)


def format_domains(kinds: Mapping[str, str]) -> str:
    """Inverse of `parse_domains`: "page:image, spin:clip"."""
    return ", ".join(f"{name}:{kind}" for name, kind in kinds.items())


def read_domains(folder: Path) -> dict[str, str]:
    """Returns the domains of the data set in a folder, and their kinds; raises ValueError if the file is invalid."""
    path = folder / DOMAINS_FILE
    if not path.exists():
        return dict(ROPE_DOMAINS)
    return check_domains(read_json(path, remedy="run the same build again"), path)


def write_domains(folder: Path, kinds: Mapping[str, str]) -> None:
    """Writes the domains of a data set."""
    with atomic_write(folder / DOMAINS_FILE, "w") as file:
        file.write(json.dumps(kinds) + "\n")


def domain_pairs(domains: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Returns all pairs of domains: (page, video), (page, live), (video, live); of a single domain, it with itself."""
    names = sort_domains(domains)
    return tuple(combinations(names, 2)) or tuple((name, name) for name in names)


def direction_name(source: str, target: str, domains: Iterable[str] = DOMAINS) -> str:
    """Returns the name of a direction in tables and metrics.

    ("page", "video") → "p2v", or "page_to_photo" if two of the domains have the same initial.
    """
    names = set(domains)
    return f"{source[0]}2{target[0]}" if len({name[0] for name in names}) == len(names) else f"{source}_to_{target}"


def directions(domains: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns the ordered pairs of retrieval and few-shot classification by name, in the order of COPE's tables.

    A single domain is searched for other items of the same product: {"p2p": ("page", "page")}.
    """
    names = sort_domains(domains)
    ordered = [(a, b) for pair in domain_pairs(names) for a, b in dict.fromkeys((pair, pair[::-1]))]
    return {direction_name(a, b, names): (a, b) for a, b in ordered}


def second_item(domain: str) -> str:
    """Returns the name, in batches and losses, of another item of the same product and domain: "page_2"."""
    return f"{domain}_2"


def batch_entries(domains: Iterable[str], paired: Iterable[str]) -> dict[str, str]:
    """Returns the entries of training batches and their domains: each domain, and second items of paired domains."""
    return {name: name for name in sort_domains(domains)} | {second_item(name): name for name in sort_domains(paired)}


def find_data_set(data_dir: Path) -> Path:
    """Returns the folder of a data set: `data_dir` itself, or the only data set in it, by default `data_dir`/rope.

    Raises:
        ValueError: There are several.
    """

    def is_data_set(folder: Path) -> bool:
        return (folder / DOMAINS_FILE).exists() or (folder / "product").is_dir()

    if is_data_set(data_dir):
        return data_dir
    found = sorted(filter(is_data_set, data_dir.iterdir())) if data_dir.is_dir() else []
    if len(found) > 1:
        raise ValueError(f"{data_dir} has several data sets: choose {' or '.join(map(str, found))} as data folder")
    return found[0] if found else data_dir / "rope"

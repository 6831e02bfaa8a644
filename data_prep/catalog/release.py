"""The text files of a release: nine per split, a file of pairs, of texts and of frames for each domain.

A line is a row of comma-separated fields, in any order; see `line_parser`. Ids are unique within a domain only: page 7
and video 7 are different items.
"""

from pathlib import Path
from typing import NamedTuple

NO_TEXT = "空"  # how a missing text is written
PREFIXES = {"train": "training_", "test": "test_"}
# Domain → names of its files of pairs, texts and frames, between the prefix and ".txt".
FILES = {
    "page": ("product_pages_pair", "page_titles", "page_images"),
    "video": ("product_videos_pair", "video_asrs", "video_frames"),
    "live": ("product_lives_pair", "live_asrs", "live_clips"),
}


class DomainFiles(NamedTuple):
    """The three files of a domain in one split."""

    pairs: Path
    texts: Path
    frames: Path


def release_files(directory: Path | str, split: str, *, prefix: str | None = None) -> dict[str, DomainFiles]:
    """Returns domain → paths of its three files; raises ValueError listing those that are missing.

    `prefix` starts the file names, by default that of the split in `PREFIXES`.
    """
    directory = Path(directory)
    if prefix is None:
        if split not in PREFIXES:
            raise ValueError(f"unknown split {split!r}: choose from {', '.join(PREFIXES)}, or give a file prefix")
        prefix = PREFIXES[split]
    files = {
        domain: DomainFiles(*(directory / f"{prefix}{name}.txt" for name in names)) for domain, names in FILES.items()
    }
    if missing := [path.name for group in files.values() for path in group if not path.is_file()]:
        raise ValueError(
            f"split {split!r}: {', '.join(missing)} not found in {directory.absolute()}; "
            f"a split has nine files that start with {prefix!r}"
        )
    return files

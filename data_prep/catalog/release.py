"""What a release is: the nine text files that describe one split, and the items that they speak of.

A row is one line, its fields separated by commas; a text may itself contain commas, so only the first one of
a text row separates. Rows come in any order. Ids are unique within a domain only: page 7 and video 7 are
different items. `lines` says what a line means.
"""

import dataclasses
from pathlib import Path

NO_TEXT = "空"  # how a missing text is written
PREFIXES = {"train": "training_", "test": "test_"}
# Domain → what its files of pairs, texts and frames are called between the prefix and ".txt".
FILES = {
    "page": ("product_pages_pair", "page_titles", "page_images"),
    "video": ("product_videos_pair", "video_asrs", "video_frames"),
    "live": ("product_lives_pair", "live_asrs", "live_clips"),
}


class ReleaseError(ValueError):
    """A release that lacks files; the message names them."""


@dataclasses.dataclass(frozen=True)
class DomainFiles:
    """The three files of a domain in one split."""

    pairs: Path
    texts: Path
    frames: Path


def release_files(directory: Path | str, split: str, *, prefix: str | None = None) -> dict[str, DomainFiles]:
    """Returns domain → the paths of its three files.

    Args:
      directory: folder with the text files.
      split: `train` or `test`; another name needs a `prefix`.
      prefix: what the file names start with; None takes it from `PREFIXES`.

    Raises:
      ReleaseError: unknown split, or files that do not exist (all of them are named).
    """
    directory = Path(directory)
    if prefix is None:
        if split not in PREFIXES:
            raise ReleaseError(f"unknown split {split!r}: want {', '.join(PREFIXES)} or a file prefix")
        prefix = PREFIXES[split]
    files = {
        domain: DomainFiles(*(directory / f"{prefix}{name}.txt" for name in names)) for domain, names in FILES.items()
    }
    every = [file for group in files.values() for file in (group.pairs, group.texts, group.frames)]
    if missing := [file.name for file in every if not file.is_file()]:
        raise ReleaseError(
            f"split {split!r}: {', '.join(missing)} not found in {directory.absolute()}; "
            f"a split has nine files that start with {prefix!r}"
        )
    return files

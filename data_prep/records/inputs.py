"""The inputs of a build and their fingerprint."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_prep.catalog.files import Catalog
from data_prep.catalog.release_catalog import build_release_catalog
from data_prep.catalog.release_parser import PREFIXES
from data_prep.images import sources as image_sources
from data_prep.videos.reader import ALL_DEFAULTS, FrameChoice

VERSION = 1  # increment when the same inputs give other records


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A catalog, the images of its frames, the splits to build, and the size of the images."""

    catalog: Path
    images: tuple[Path, ...]  # folders, or shards of a download; if several contain a name, the first wins
    splits: tuple[str, ...] = ("train", "test")
    max_side: int | None = None  # longer side of images in pixels, to which larger ones are shrunk; None keeps all
    choice: FrameChoice = ALL_DEFAULTS  # of the frames of clips

    def __post_init__(self) -> None:
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits are {list(self.splits)}; name at least one, and each only once")
        if not self.images:
            raise ValueError("there is no source of images; name at least one with --images")

    @functools.cached_property
    def opened_catalog(self) -> Catalog:
        """The catalog."""
        return Catalog(self.catalog)

    def check(self) -> None:
        """Raises ValueError if a split is missing or empty, or a domain is, before hours are spent on the others."""
        count, domains = self.opened_catalog.count, self.opened_catalog.domains
        empty = [f"split {split!r}" for split in self.splits if not any(count(split, domain) for domain in domains)]
        empty += [f"domain {domain}" for domain in domains if not any(count(split, domain) for split in self.splits)]
        if empty:
            raise ValueError(
                f"{self.catalog} has no items in {', '.join(empty)}: build other --splits, or make another catalog; "
                "for a table, with a larger --test_fraction or a split column"
            )

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        """Digests and values that identify the inputs, wherever the catalog and the images are stored.

        Images are identified by their names and sizes, see `image_sources.fingerprint`.
        """
        digests = [image_sources.fingerprint(source) for source in self.images]
        return {
            "catalog": self.opened_catalog.fingerprint,
            "images": hashlib.sha256(" ".join(digests).encode()).hexdigest(),
            "splits": ", ".join(self.splits),
            "version": str(VERSION),
            **({"max_side": str(self.max_side)} if self.max_side else {}),
            **({"clips": str(self.choice)} if self.choice != ALL_DEFAULTS else {}),
        }

    @property
    def digest(self) -> str:
        """The fingerprint as 16 hexadecimal digits, used in names of folders."""
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def inputs_from_release(
    release: Path,
    data_dir: Path,
    *,
    images: Sequence[Path] = (),
    splits: Sequence[str] = tuple(PREFIXES),
    prefixes: Mapping[str, str] | None = None,
    max_side: int | None = None,
    report: Callable[[str], None] = print,
) -> Inputs:
    """Makes the catalog of a release in `<data_dir>/catalog` and returns the inputs of its build.

    Args:
        release: Folder with the text files.
        data_dir: TFDS's data folder.
        images: Sources of images; by default `<release>/images`.
        splits: Splits to build.
        prefixes: Prefixes of the file names by split, if they differ from `release_parser.PREFIXES`.
        max_side: Attribute of the inputs.
        report: Called with lines of progress.
    """
    inputs = Inputs(data_dir / "catalog", tuple(images) or (release / "images",), tuple(splits), max_side)
    build_release_catalog(release, inputs.catalog, splits=inputs.splits, prefixes=prefixes, report=report)
    return inputs

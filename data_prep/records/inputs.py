"""What a build is made from, and a fingerprint that changes when it does."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_prep.catalog.files import Catalog
from data_prep.catalog.release import PREFIXES
from data_prep.catalog.release_rows import make_catalog
from data_prep.common.domains import DOMAINS
from data_prep.images import sources as image_sources

VERSION = 1  # raise when the same inputs give other records


class BuildError(ValueError):
    """A build that cannot be made; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A catalog and the images of its frames.

    Attributes:
      catalog: its folder.
      images: where the images are, folders or shards of a download; of several with a name the first is taken.
      splits: the splits to build.
    """

    catalog: Path
    images: tuple[Path, ...]
    splits: tuple[str, ...] = ("train", "test")

    def __post_init__(self):
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise BuildError(f"splits {list(self.splits)}: wanted at least one, and each once")
        if not self.images:
            raise BuildError("no source of images: name at least one with --images")

    @functools.cached_property
    def opened(self) -> Catalog:
        return Catalog(self.catalog)

    def check(self) -> None:
        """Raises CatalogError or BuildError where a split or a domain's items lack, before hours go into others."""
        lacking = [
            f"no {domain} items in split {split!r}"
            for split in self.splits
            for domain in DOMAINS
            if not self.opened.count(split, domain)
        ]
        if lacking:
            raise BuildError(
                f"{self.catalog} has {', '.join(lacking)}; a split needs all three domains: build other --splits, or "
                "make the catalog anew, that of a table with a larger --test_fraction or with a column split"
            )

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        """What was built from: name → digest or value, the same wherever catalog and images lie.

        Images are not opened: `image_sources.fingerprint`.

        Raises:
          CatalogError: no finished catalog.
          ImageSourceError: a missing folder of images, or a tar without a ledger.
        """
        digests = [image_sources.fingerprint(source) for source in self.images]
        return {
            "catalog": self.opened.fingerprint,
            "images": hashlib.sha256(" ".join(digests).encode()).hexdigest(),
            "splits": ", ".join(self.splits),
            "version": str(VERSION),
        }

    @property
    def digest(self) -> str:
        """The fingerprint as sixteen hex digits, to name folders by."""
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def release_inputs(
    release: Path,
    data_dir: Path,
    *,
    images: Sequence[Path] = (),
    splits: Sequence[str] = tuple(PREFIXES),
    prefixes: Mapping[str, str] | None = None,
    report: Callable[[str], None] = print,
) -> Inputs:
    """Makes the catalog of a release in `<data_dir>/catalog` and returns what to build from.

    Args:
      release: folder with the text files.
      data_dir: TFDS's data folder.
      images: sources of images; none is `<release>/images`.
      splits: the splits to build.
      prefixes: split → prefix of its file names, where not that of `release.PREFIXES`.
      report: takes lines of progress.

    Raises:
      ReleaseError, CatalogError: the release cannot be read, or the catalog there is another's.
    """
    inputs = Inputs(data_dir / "catalog", tuple(images) or (release / "images",), tuple(splits))
    make_catalog(release, inputs.catalog, splits=inputs.splits, prefixes=prefixes, report=report)
    return inputs

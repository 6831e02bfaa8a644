"""What a build is made from, and a fingerprint that changes when it does."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from data_prep.release import DOMAINS, Release, ReleaseError, read_release, release_files


class BuildError(ValueError):
    """A build that cannot be made; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A release and its images.

    Attributes:
      release: folder with the text files.
      images: folder with the images; None is `<release>/images`.
      splits: the splits to build.
      prefixes: split → prefix of its file names, where not that of `release.PREFIXES`.
    """

    release: Path
    images: Path | None = None
    splits: tuple[str, ...] = ("train", "test")
    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise BuildError(f"splits {list(self.splits)}: wanted at least one, and each once")

    @property
    def images_folder(self) -> Path:
        return self.images if self.images is not None else self.release / "images"

    def read(self, split: str) -> Release:
        """Returns the split, read once; raises ReleaseError as `read_release` does."""
        if split not in self._read:
            self._read[split] = read_release(self.release, split, prefix=self.prefixes.get(split))
        return self._read[split]

    @functools.cached_property
    def _read(self) -> dict[str, Release]:
        return {}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the splits' names, the bytes of their text files and the images' names and sizes.

        Images are not opened: that would cost as much as building. A folder with the same files elsewhere has
        the same fingerprint.

        Raises:
          ReleaseError: a missing text file or images folder.
        """
        digest = hashlib.sha256()
        for split in self.splits:
            files = release_files(self.release, split, prefix=self.prefixes.get(split))
            for domain in DOMAINS:
                for part, path in dataclasses.asdict(files[domain]).items():
                    with path.open("rb") as file:
                        content = hashlib.file_digest(file, "sha256").hexdigest()
                    digest.update(f"{split} {domain} {part} {content}\n".encode())
        for name, size in self._list_images():
            digest.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _list_images(self) -> list[tuple[str, int]]:
        if not self.images_folder.is_dir():
            raise ReleaseError(f"images folder {self.images_folder.absolute()} not found")
        with os.scandir(self.images_folder) as entries:
            # Hidden files are those of desktops, not of the release.
            visible = (entry for entry in entries if not entry.name.startswith(".") and entry.is_file())
            return sorted((entry.name, entry.stat().st_size) for entry in visible)

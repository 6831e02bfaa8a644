"""Images that a build drops: the limit on their share, and the file that lists them."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data_prep.common.files import atomic_write
from data_prep.images import index as image_index
from data_prep.images.decoding import ImageProblem
from data_prep.images.lookup import format_hints
from data_prep.records.inputs import Inputs

MAX_MISSING = 0.01
DROPPED_FILE = "dropped.jsonl"
_MAX_HINTS = 10_000  # names that are compared with those of all images


def check_missing(index: Path, inputs: Inputs, max_missing: float, target: Path) -> None:
    """Raises ValueError if too many images of a split's domain are missing, and lists all that are in a file.

    Args:
        index: Folder of the image index.
        inputs: Inputs of the build.
        max_missing: Largest fraction of images to drop.
        target: File for the list.
    """
    counts = {
        f"{split} {domain}": image_index.count_missing(image_index.places_path(index, split, domain))
        for split in inputs.splits
        for domain in inputs.opened_catalog.domains
    }
    excessive = {name: count for name, count in counts.items() if _is_excessive(*count, max_missing)}
    if not excessive:
        return
    write_lines(target, _missing_images(index, inputs))
    first = itertools.islice(_missing_images(index, inputs), _MAX_HINTS)
    names = dict.fromkeys(str(line["image"]) for line in first)
    found = format_hints(image_index.explain_missing(index, names, inputs.images))
    found = found or f"nothing like {next(iter(names))!r} exists"
    missing = ", ".join(f"{count:,} of {total:,} {name} images" for name, (count, total) in excessive.items())
    raise ValueError(
        f"{missing} are missing in {', '.join(map(str, inputs.images))}: {found}. {target} lists all of them; "
        f"{_remedy(excessive.values())}"
    )


def check_dropped(name: str, frames: Mapping, max_missing: float, target: Path, folder: Path) -> None:
    """Raises ValueError if too many images of a split's domain were dropped, and lists them in a file.

    Args:
        name: Split and domain.
        frames: Counts of the frames: "in" and "dropped", by reason.
        max_missing: Largest fraction of images to drop.
        target: File for the list.
        folder: Folder of the finished shards.
    """
    count = sum(frames["dropped"].values())
    if not _is_excessive(count, frames["in"], max_missing):
        return
    copy_lists(target, [folder])
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in frames["dropped"].items())
    raise ValueError(
        f"{count:,} of {frames['in']:,} {name} images cannot be used: {reasons}. {target} lists them; "
        f"{_remedy([(count, frames['in'])])}"
    )


def write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Writes one line per dropped image."""
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def list_path(report: Path) -> Path:
    """Returns the path of the list of a shard's dropped images, given that of its report."""
    return report.with_suffix(".dropped.jsonl")


def copy_lists(target: Path, folders: Iterable[Path]) -> None:
    """Writes the lists of all shards in some folders to one file."""
    with atomic_write(target) as file:
        for folder in folders:
            for path in sorted((folder / "reports").glob("*.dropped.jsonl")):
                file.write(path.read_bytes())


def dropped_image(split: str, domain: str, item_id: int | str, image: str, reason: str) -> dict[str, object]:
    """Returns a line of the list."""
    return {"split": split, "domain": domain, "item_id": item_id, "image": image, "reason": reason}


def _missing_images(index: Path, inputs: Inputs) -> Iterator[dict[str, object]]:
    for split, domain in itertools.product(inputs.splits, inputs.opened_catalog.domains):
        path = image_index.places_path(index, split, domain)
        places = image_index.read_places(path, 0, image_index.count_missing(path)[1])
        for item in inputs.opened_catalog.items(split, domain):
            for frame, place in zip(item.frames, places, strict=False):  # the rest are of the next items
                if place.source is None:
                    yield dropped_image(split, domain, item.own_id, frame.name, ImageProblem.MISSING)


def _is_excessive(count: int, total: int, max_missing: float) -> bool:
    return count > (max(1, max_missing * total) if max_missing else 0)  # in small data, too, one image may be missing


def _remedy(counts: Iterable[tuple[int, int]]) -> str:
    share = max(math.ceil(100 * count / total) / 100 for count, total in counts)
    return f"to build without them, call build with --max_missing={share} or more"  # `tfds build` has no such flag

"""Writes the synthetic release: text files and JPEG images, with difficulties like those of the real one."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_prep.catalog.release import FILES, PREFIXES
from data_prep.common.differences import describe_differences
from data_prep.common.files import atomic_folder
from data_prep.common.process_pool import process_map
from data_prep.common.progress import Progress
from data_prep.synthetic.plan import Plan, PlannedItem, plan_release
from data_prep.synthetic.products import Attributes, generator
from data_prep.synthetic.scenes import draw_item

# Increment when the drawings or texts change, so that a release of an older recipe is not taken for a current one.
RECIPE = 6
OPTIONS_FILE = "synthetic.json"
# There are about a million combinations of attributes; if most were taken, all products would be near-duplicates.
LIMITS = {
    "train_products": (8, 200_000),
    "test_products": (8, 200_000),
    "image_side": (16, 4096),
    "processes": (1, 1024),
}
BATCH = 48  # items that a process draws at a time


@dataclasses.dataclass(frozen=True)
class Batch:
    """Items of one split for one process to draw, and the folder for their images."""

    items: Sequence[PlannedItem]
    shelf: tuple[Attributes, ...]
    images: Path
    side: int
    seed: int


def write_release(
    directory: Path | str, *, train_products: int, test_products: int, image_side: int, seed: int, processes: int = 1
) -> Path:
    """Writes a release with the splits `train` and `test`, or keeps a finished one with the same options.

    Args:
        directory: Folder of the release. It must not exist, be empty, or contain this release.
        train_products, test_products: Numbers of products of the two splits, which share none.
        image_side: Width and height of all images in pixels.
        seed: Any integer; determines products, items and pictures.
        processes: Number of processes; the result does not depend on it.

    Returns:
        The folder with 18 text files, `images/` and `synthetic.json`, which records the options.
    """
    directory = Path(directory)
    options = {
        "recipe": RECIPE,
        "train_products": train_products,
        "test_products": test_products,
        "image_side": image_side,
        "seed": seed,
    }
    _check(options | {"processes": processes})
    if _is_written(directory, options):
        print(f"{directory} is already written")
        return directory
    with atomic_folder(directory) as unfinished:
        (unfinished / "images").mkdir()
        plan = plan_release(train_products, test_products, seed)
        for name, rows in text_files(plan, seed):
            (unfinished / name).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        _draw(plan, unfinished / "images", image_side, seed, processes)
        (unfinished / OPTIONS_FILE).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    return directory


def _check(options: Mapping[str, int]) -> None:
    invalid = [
        f"--{name}={options[name]} ({low} to {high})"
        for name, (low, high) in LIMITS.items()
        if not low <= options[name] <= high
    ]
    if invalid:
        raise ValueError(f"out of range: {', '.join(invalid)}")


def _is_written(directory: Path, options: Mapping[str, int]) -> bool:
    """Returns whether the folder contains this release; raises ValueError if it contains something else."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    if not (directory / OPTIONS_FILE).is_file():
        raise ValueError(f"{directory} exists and is not a synthetic release; choose another --out or remove it")
    found = json.loads((directory / OPTIONS_FILE).read_text(encoding="utf-8"))
    if differences := ", ".join(describe_differences(found, options, labels=("there", "given"))):
        raise ValueError(
            f"{directory} contains a release with other options ({differences}); choose another --out or remove it"
        )
    return True


def text_files(plan: Plan, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Yields the names and rows of all 18 text files; rows in random order, with spaces as in the real release."""
    for split, prefix in PREFIXES.items():
        for domain, (pairs, texts, frames) in FILES.items():
            items = [item for item in plan.items if (item.split, item.domain) == (split, domain)]
            tables = {
                pairs: [f"{p.product_id}, {item.item_id}" for item in items for p in item.products],
                texts: [f"{item.item_id}, {item.text}" for item in items],
                frames: [
                    f"{item.item_id}, {name} " if domain == "page" else f"{item.item_id}, {time}, {name} "
                    for item in items
                    for time, name in item.frames
                ],
            }
            for table, rows in tables.items():
                order = generator(seed, "rows", split, table).permutation(len(rows))
                yield f"{prefix}{table}.txt", [rows[i] for i in order]


def _draw(plan: Plan, images: Path, side: int, seed: int, processes: int) -> None:
    batches = [
        Batch(items[start : start + BATCH], plan.shelves[split], images, side, seed)
        for split in plan.products
        for items in [[item for item in plan.items if item.split == split]]
        for start in range(0, len(items), BATCH)
    ]
    total = sum(len(item.frames) for item in plan.items)
    with process_map(min(processes, len(batches))) as apply, Progress(total=total, unit="images") as progress:
        for _, count in apply(draw_batch, batches):
            progress.update(count)


def draw_batch(batch: Batch) -> int:
    """Draws and writes the images of some items; returns the number of images."""
    count = 0
    for item in batch.items:
        rng = generator(batch.seed, "scene", item.domain, item.item_id)
        frames = draw_item(item.domain, item.shown, batch.shelf, frames=len(item.frames), side=batch.side, rng=rng)
        for (_, name), encoded in zip(item.frames, frames, strict=True):
            (batch.images / name).write_bytes(encoded)
            count += 1
    return count

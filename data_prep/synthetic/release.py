"""Writes the synthetic release: text files and JPEG images, with difficulties like those of the real one."""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.catalog.release_parser import FILES, PREFIXES
from data_prep.common.domains import DOMAINS
from data_prep.common.files import atomic_folder, is_finished
from data_prep.common.process_pool import process_map
from data_prep.common.progress import Progress
from data_prep.synthetic import texts
from data_prep.synthetic.products import (
    DEFAULT_RECIPE,
    Attributes,
    Product,
    Recipe,
    find_recipe,
    generator,
    random_bytes,
    sample_products,
)
from data_prep.synthetic.scenes import draw_item

OPTIONS_FILE = "synthetic.json"
# Recipe 6 has about a million combinations of attributes; if most were taken, all products would be near-duplicates.
LIMITS = {
    "train_products": (8, 200_000),
    "test_products": (8, 200_000),
    "image_side": (16, 4096),
    "processes": (1, 1024),
}
BATCH = 48  # items that a process draws at a time

# Numbers of items per product and domain, equally frequent; 2 on average, so over 400 for 220 products.
ITEMS = (1, 1, 1, 2, 2, 2, 3, 4)
MISSING = 0.08  # share of products without one of the domains
PAIRS = 0.05  # share of items that belong to two products
CLIP_FRAMES = (4, 12)
SHELF = 96  # products of a split that appear in the background of its lives

VIDEO_STEP = (12, 240)  # frame numbers
LIVE_START = 1_660_000_000_000, 1_670_000_000_000  # ms since 1970
LIVE_STEP = (4_000, 90_000)  # ms


@dataclass(frozen=True)
class PlannedItem:
    """An item to write; `frames` are (time, image name) in time order. The time of a page is 0."""

    split: str
    domain: str
    item_id: int
    products: tuple[Product, ...]
    text: str
    frames: tuple[tuple[int, str], ...]

    @property
    def shown(self) -> tuple[Attributes, ...]:
        """Attributes of its products."""
        return tuple(product.attributes for product in self.products)


@dataclass(frozen=True)
class Plan:
    """A release: its recipe, the products of each split, those in the background of its lives, and all items."""

    recipe: Recipe
    products: dict[str, list[Product]]
    shelves: dict[str, tuple[Attributes, ...]]
    items: list[PlannedItem]


@dataclass(frozen=True)
class Batch:
    """Items of one split for one process to draw, and the folder for their images."""

    items: Sequence[PlannedItem]
    shelf: tuple[Attributes, ...]
    images: Path
    side: int
    seed: int


def write_release(
    directory: Path | str,
    *,
    train_products: int,
    test_products: int,
    image_side: int,
    seed: int,
    recipe: int = DEFAULT_RECIPE,
    processes: int = 1,
) -> Path:
    """Writes a release with the splits `train` and `test`, or keeps a finished one with the same options.

    The splits share no products. Images are squares of `image_side` pixels. The result does not depend on `processes`.

    Returns the folder with 18 text files, `images/` and `synthetic.json`, which records the options.
    """
    directory = Path(directory)
    options = {"recipe": recipe, "train_products": train_products, "test_products": test_products}
    options |= {"image_side": image_side, "seed": seed}
    given = options | {"processes": processes}
    if invalid := [name for name, (low, high) in LIMITS.items() if not low <= given[name] <= high]:
        limits = [f"--{name}={given[name]} ({LIMITS[name][0]} to {LIMITS[name][1]})" for name in invalid]
        raise ValueError(f"out of range: {', '.join(limits)}")
    find_recipe(recipe)
    if is_finished(directory, OPTIONS_FILE, options, kind="a synthetic release"):
        print(f"{directory} is already written")
        return directory
    with atomic_folder(directory) as unfinished:
        (unfinished / "images").mkdir()
        plan = plan_release(train_products, test_products, seed, recipe)
        for name, rows in text_files(plan, seed):
            (unfinished / name).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        _draw(plan, unfinished / "images", image_side, seed, processes)
        (unfinished / OPTIONS_FILE).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    return directory


def plan_release(train_products: int, test_products: int, seed: int, recipe: int) -> Plan:
    """Plans both splits. The item ids of a domain are a random permutation over both splits."""
    found = find_recipe(recipe)
    train, test = sample_products(train_products, test_products, seed, found)
    products = {"train": train, "test": test}
    shelves = {}
    for split, members in products.items():
        order = generator(seed, "shelf", split).permutation(len(members))
        shelves[split] = tuple(members[i].attributes for i in order[:SHELF])
    items = []
    for domain in DOMAINS:
        owners = [(split, shown) for split in products for shown in _owners(products[split], domain, seed, split)]
        ids = generator(seed, "item ids", domain).permutation(len(owners)) + 1
        items += [_item(*owner, domain, item, seed, found) for owner, item in zip(owners, ids.tolist(), strict=True)]
    # Grouped by product, so that its sprites are drawn only once.
    items.sort(key=lambda item: (item.split, item.products[0].product_id))
    return Plan(found, products, shelves, items)


def _owners(products: Sequence[Product], domain: str, seed: int, split: str) -> Iterator[tuple[Product, ...]]:
    """Yields the one or two products of each item of a domain."""
    missing = generator(seed, "lacking", split).permutation(len(products))[: round(MISSING * len(products))]
    without = set(missing[DOMAINS.index(domain) :: len(DOMAINS)].tolist())
    present = [product for i, product in enumerate(products) if i not in without]
    rng = generator(seed, "owners", split, domain)
    counts = rng.permutation(np.resize(ITEMS, len(present)))
    for i, count in enumerate(counts):
        for _ in range(count):
            if len(present) > 1 and rng.random() < PAIRS:
                other = (i + int(rng.integers(1, len(present)))) % len(present)
                yield present[i], present[other]
            else:
                yield (present[i],)


def _item(
    split: str, products: tuple[Product, ...], domain: str, item_id: int, seed: int, recipe: Recipe
) -> PlannedItem:
    rng = generator(seed, "text", domain, item_id)
    text = texts.title(products, recipe, rng) if domain == "page" else texts.transcript(products, recipe, rng)
    times = _times(domain, generator(seed, "times", domain, item_id))
    # Like the names of the real release: eae32f52-2a9a-41ee-a32e-507c6f3c3e56.jpg
    digests = [random_bytes(seed, "name", domain, item_id, i) for i in range(len(times))]
    names = [f"{uuid.UUID(bytes=digest, version=4)}.jpg" for digest in digests]
    return PlannedItem(split, domain, item_id, products, text, tuple(zip(times, names, strict=True)))


def _times(domain: str, rng: np.random.Generator) -> list[int]:
    if domain == "page":
        return [0]
    count = rng.integers(*CLIP_FRAMES, size=2, endpoint=True).min()  # mostly short clips: 6.5 on average
    start, step = ((0, 600), VIDEO_STEP) if domain == "video" else (LIVE_START, LIVE_STEP)
    return (rng.integers(*start) + np.cumsum(rng.integers(*step, count))).tolist()


def text_files(plan: Plan, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Yields the names and rows of all 18 text files; rows in random order, with spaces as in the real release."""
    for split, prefix in PREFIXES.items():
        for domain, (pairs, titles, frames) in FILES.items():
            items = [item for item in plan.items if (item.split, item.domain) == (split, domain)]
            tables = {
                pairs: [f"{p.product_id}, {item.item_id}" for item in items for p in item.products],
                titles: [f"{item.item_id}, {item.text}" for item in items],
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
    for item in batch.items:
        rng = generator(batch.seed, "scene", item.domain, item.item_id)
        frames = draw_item(item.domain, item.shown, batch.shelf, frames=len(item.frames), side=batch.side, rng=rng)
        for (_, name), encoded in zip(item.frames, frames, strict=True):
            (batch.images / name).write_bytes(encoded)
    return sum(len(item.frames) for item in batch.items)

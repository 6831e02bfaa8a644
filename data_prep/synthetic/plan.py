"""Plans a synthetic release: products, items, texts, frames and ids, but no pictures."""

import dataclasses
import uuid
from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.common.domains import DOMAINS
from data_prep.synthetic import texts
from data_prep.synthetic.products import Attributes, Product, generator, random_bytes, sample_products

# Numbers of items per product and domain, equally frequent; 2 on average, so over 400 for 220 products.
ITEMS = (1, 1, 1, 2, 2, 2, 3, 4)
MISSING = 0.08  # share of products without one of the domains
PAIRS = 0.05  # share of items that belong to two products
CLIP_FRAMES = (4, 12)
SHELF = 96  # products of a split that appear in the background of its lives

VIDEO_STEP = (12, 240)  # frame numbers
LIVE_START = 1_660_000_000_000, 1_670_000_000_000  # ms since 1970
LIVE_STEP = (4_000, 90_000)  # ms


@dataclasses.dataclass(frozen=True)
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """A release: the products of each split, those in the background of its lives, and all items."""

    products: dict[str, list[Product]]
    shelves: dict[str, tuple[Attributes, ...]]
    items: list[PlannedItem]


def plan_release(train_products: int, test_products: int, seed: int) -> Plan:
    """Plans both splits. The item ids of a domain are a random permutation over both splits."""
    train, test = sample_products(train_products, test_products, seed)
    products = {"train": train, "test": test}
    shelves = {split: _shelf(members, generator(seed, "shelf", split)) for split, members in products.items()}
    owners = {
        domain: [
            (split, shown) for split, members in products.items() for shown in _owners(members, domain, seed, split)
        ]
        for domain in DOMAINS
    }
    items = []
    for domain, owned in owners.items():
        ids = generator(seed, "item ids", domain).permutation(len(owned)) + 1
        items += [
            _item(split, domain, int(item_id), shown, seed) for item_id, (split, shown) in zip(ids, owned, strict=True)
        ]
    # Grouped by product, so that its sprites are drawn only once.
    items.sort(key=lambda item: (item.split, item.products[0].product_id))
    return Plan(products, shelves, items)


def _shelf(products: Sequence[Product], rng: np.random.Generator) -> tuple[Attributes, ...]:
    return tuple(products[i].attributes for i in rng.permutation(len(products))[:SHELF])


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


def _item(split: str, domain: str, item_id: int, products: tuple[Product, ...], seed: int) -> PlannedItem:
    rng = generator(seed, "text", domain, item_id)
    text = texts.title(products, rng) if domain == "page" else texts.transcript(products, rng)
    times = _times(domain, generator(seed, "times", domain, item_id))
    frames = tuple((time, _image_name(seed, domain, item_id, i)) for i, time in enumerate(times))
    return PlannedItem(split, domain, item_id, products, text, frames)


def _times(domain: str, rng: np.random.Generator) -> list[int]:
    if domain == "page":
        return [0]
    count = rng.integers(*CLIP_FRAMES, size=2, endpoint=True).min()  # mostly short clips: 6.5 on average
    start, step = ((0, 600), VIDEO_STEP) if domain == "video" else (LIVE_START, LIVE_STEP)
    return (rng.integers(*start) + np.cumsum(rng.integers(*step, count))).tolist()


def _image_name(seed: int, *purpose: str | int) -> str:
    """Returns a name like those of the real release, e.g. `eae32f52-2a9a-41ee-a32e-507c6f3c3e56.jpg`."""
    return f"{uuid.UUID(bytes=random_bytes(seed, 'name', *purpose), version=4)}.jpg"

"""Synthetic products: combinations of six visible attributes and a brand, some of them near-duplicates."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from data_prep.synthetic.seeds import generator

# Share of products that come in families; the members of a family differ in exactly one attribute.
NEAR_DUPLICATES = 1 / 3
FAMILY_SIZES = (2, 3, 4)

# Sixteen colours a person tells apart in daylight; some are close on purpose (red and wine, white and beige).
COLOURS = {
    "red": (214, 36, 40),
    "wine": (126, 22, 48),
    "orange": (242, 128, 24),
    "yellow": (248, 212, 40),
    "green": (104, 190, 60),
    "forest": (24, 92, 56),
    "teal": (20, 160, 160),
    "sky": (112, 190, 240),
    "navy": (28, 48, 120),
    "purple": (124, 60, 168),
    "pink": (246, 150, 186),
    "brown": (120, 76, 40),
    "beige": (226, 206, 170),
    "grey": (136, 140, 146),
    "black": (34, 34, 38),
    "white": (246, 246, 244),
}
CATEGORIES = (
    "bag", "mug", "shoe", "shirt", "bottle", "lamp", "chair", "hat",
    "phone", "watch", "umbrella", "teapot", "trousers", "dress", "guitar", "cushion",
)  # fmt: skip
PATTERNS = ("plain", "horizontal", "vertical", "diagonal", "dots", "checks", "zigzag", "halves", "grid")
MARKS = ("none", "disc", "ring", "star", "triangle", "heart", "cross", "letter")
PROPORTIONS = ("regular", "tall", "wide", "flared")

# Brands are heard and read, never seen. Sixteen characters make 64 names, so that names resemble one another.
BRANDS = tuple(
    first + second + ("", "", "曼")[(i + j) % 3]
    for i, first in enumerate("华森雅朗安锦云佳")
    for j, second in enumerate("诺莱迪克尔斯达薇")
)


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What one sees of a product. No two products of a release have equal attributes."""

    category: str
    base: str  # colour of the body
    second: str  # colour of the pattern and of handles, straps, soles …; never the base colour
    pattern: str
    mark: str
    proportion: str


@dataclasses.dataclass(frozen=True)
class Product:
    """One product: its id, what one sees of it and its brand."""

    product_id: int
    attributes: Attributes
    brand: str


VALUES = {
    "category": CATEGORIES,
    "base": tuple(COLOURS),
    "second": tuple(COLOURS),
    "pattern": PATTERNS,
    "mark": MARKS,
    "proportion": PROPORTIONS,
}


def sample_products(train: int, test: int, seed: int) -> tuple[list[Product], list[Product]]:
    """Draws the training and the test products; no combination of attributes occurs twice in the two lists.

    Families lie within one split. Ids are a random permutation over both.
    """
    taken: set[Attributes] = set()
    drawn = [
        *_sample_split(train, generator(seed, "products", "train"), taken),
        *_sample_split(test, generator(seed, "products", "test"), taken),
    ]
    ids = generator(seed, "product ids").permutation(len(drawn)) + 1
    products = [Product(int(i), attributes, brand) for i, (attributes, brand) in zip(ids, drawn, strict=True)]
    return products[:train], products[train:]


def _sample_split(count: int, rng: np.random.Generator, taken: set[Attributes]) -> list[tuple[Attributes, str]]:
    """`count` new combinations with their brands in random order; adds them to `taken`."""
    families = list(_family_sizes(round(count * NEAR_DUPLICATES), rng))
    sizes = families + [1] * (count - sum(families))
    drawn = []
    founders, brands = _founders(len(sizes), rng), _balanced(BRANDS, len(sizes), rng)
    for founder, brand, size in zip(founders, brands, sizes, strict=True):
        while founder in taken:
            founder = next(_founders(1, rng))
        taken.add(founder)
        relatives = _relatives(founder, size - 1, rng, taken)
        taken.update(relatives)
        drawn += [(member, brand) for member in (founder, *relatives)]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def _family_sizes(members: int, rng: np.random.Generator) -> Iterator[int]:
    """Sizes of families of at least two that together have `members` members, or one fewer."""
    while members >= min(FAMILY_SIZES):
        size = min(int(rng.choice(FAMILY_SIZES)), members)
        yield size
        members -= size


def _balanced(values: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """`count` values in random order, each as often as any other: also few products show every value."""
    return [values[i] for i in rng.permutation(np.arange(count) % len(values))]


def _founders(count: int, rng: np.random.Generator) -> Iterator[Attributes]:
    columns = {name: _balanced(values, count, rng) for name, values in VALUES.items()}
    for row in zip(*columns.values(), strict=True):
        attributes = Attributes(*row)
        while attributes.second == attributes.base:
            attributes = dataclasses.replace(attributes, second=str(rng.choice(VALUES["second"])))
        yield attributes


def _relatives(founder: Attributes, count: int, rng: np.random.Generator, taken: set[Attributes]) -> list[Attributes]:
    """`count` new combinations that differ from the founder and one another in the same attribute."""
    for name in rng.permutation(list(VALUES)):
        changed = [dataclasses.replace(founder, **{str(name): value}) for value in VALUES[name]]
        free = [c for c in changed if c != founder and c.base != c.second and c not in taken]
        if len(free) >= count:
            return [free[i] for i in rng.choice(len(free), count, replace=False)]
    raise ValueError(f"no {count} free combinations are left beside {founder}; ask for fewer products")

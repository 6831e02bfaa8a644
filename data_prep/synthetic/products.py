"""Synthetic products: combinations of six visible attributes and a brand, some of them near-duplicates."""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

Color = tuple[int, int, int]

# Share of products in families, whose members differ in exactly one attribute.
NEAR_DUPLICATES = 1 / 3
FAMILY_SIZES = (2, 3, 4)

# Sixteen colors that a person can tell apart in daylight; some are close on purpose (red and wine, white and beige).
COLORS: dict[str, Color] = {
    "red": (214, 36, 40), "wine": (126, 22, 48), "orange": (242, 128, 24), "yellow": (248, 212, 40),
    "green": (104, 190, 60), "forest": (24, 92, 56), "teal": (20, 160, 160), "sky": (112, 190, 240),
    "navy": (28, 48, 120), "purple": (124, 60, 168), "pink": (246, 150, 186), "brown": (120, 76, 40),
    "beige": (226, 206, 170), "gray": (136, 140, 146), "black": (34, 34, 38), "white": (246, 246, 244),
}  # fmt: skip
# Values of the attributes; sprites.py draws them.
VALUES = {
    "category": (
        "bag", "mug", "shoe", "shirt", "bottle", "lamp", "chair", "hat",
        "phone", "watch", "umbrella", "teapot", "trousers", "dress", "guitar", "cushion",
    ),
    "base": tuple(COLORS),
    "second": tuple(COLORS),
    "pattern": ("plain", "horizontal", "vertical", "diagonal", "dots", "checks", "zigzag", "halves", "grid"),
    "mark": ("none", "disc", "ring", "star", "triangle", "heart", "cross", "letter"),
    "proportion": ("regular", "tall", "wide", "flared"),
}  # fmt: skip

# Brands are heard and read, never seen. Sixteen characters make 64 names, so that some names are similar.
BRANDS = tuple(
    first + second + ("", "", "曼")[(i + j) % 3]
    for i, first in enumerate("华森雅朗安锦云佳")
    for j, second in enumerate("诺莱迪克尔斯达薇")
)


@dataclasses.dataclass(frozen=True)
class Attributes:
    """The visible attributes of a product, unique within a release."""

    category: str
    base: str  # color of the body
    second: str  # color of the pattern and of handles, straps, soles …; never the base color
    pattern: str
    mark: str
    proportion: str


@dataclasses.dataclass(frozen=True)
class Product:
    """A product: its id, visible attributes and brand."""

    product_id: int
    attributes: Attributes
    brand: str


def random_bytes(seed: int, *purpose: str | int) -> bytes:
    """Returns sixteen bytes that depend on the seed and the purpose alone."""
    name = "/".join(str(part) for part in (seed, *purpose))
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Returns the generator of a purpose, such as `generator(0, "frames", "video", 17)`.

    Because everything random in the release has its own generator, nothing depends on the order of drawing or on the
    number of processes.
    """
    return np.random.Generator(np.random.PCG64(int.from_bytes(random_bytes(seed, *purpose), "little")))


def darker(color: Color, factor: float) -> Color:
    """Returns a color with all channels multiplied by a factor."""
    red, green, blue = (int(factor * channel) for channel in color)
    return red, green, blue


def sample_products(train: int, test: int, seed: int) -> tuple[list[Product], list[Product]]:
    """Draws the training and the test products, all with different attributes.

    Families do not extend over both splits. Ids are a random permutation over both.
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
    """Returns `count` new combinations and their brands in random order, and adds them to `taken`."""
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
    """Yields sizes of families, at least two, that add up to `members` or one less."""
    while members >= min(FAMILY_SIZES):
        size = min(int(rng.choice(FAMILY_SIZES)), members)
        yield size
        members -= size


def _balanced(values: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """Returns `count` values in random order, all equally often, so that even few products have every value."""
    return [values[i] for i in rng.permutation(np.arange(count) % len(values))]


def _founders(count: int, rng: np.random.Generator) -> Iterator[Attributes]:
    columns = {name: _balanced(values, count, rng) for name, values in VALUES.items()}
    for row in zip(*columns.values(), strict=True):
        attributes = Attributes(*row)
        while attributes.second == attributes.base:
            attributes = dataclasses.replace(attributes, second=str(rng.choice(VALUES["second"])))
        yield attributes


def _relatives(founder: Attributes, count: int, rng: np.random.Generator, taken: set[Attributes]) -> list[Attributes]:
    """Returns `count` new combinations that differ from the founder and one another in the same attribute."""
    for name in rng.permutation(list(VALUES)):
        changed = [dataclasses.replace(founder, **{str(name): value}) for value in VALUES[name]]
        free = [c for c in changed if c != founder and c.base != c.second and c not in taken]
        if len(free) >= count:
            return [free[i] for i in rng.choice(len(free), count, replace=False)]
    raise ValueError(f"fewer than {count} free combinations are left next to {founder}; ask for fewer products")

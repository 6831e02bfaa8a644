"""Synthetic products: combinations of visible attributes and of names, some of them near-duplicates."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

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
CATEGORIES = (
    "bag", "mug", "shoe", "shirt", "bottle", "lamp", "chair", "hat",
    "phone", "watch", "umbrella", "teapot", "trousers", "dress", "guitar", "cushion",
)  # fmt: skip
MARKS = ("disc", "ring", "star", "triangle", "heart", "cross", "letter")
PROPORTIONS = ("regular", "tall", "wide", "flared")
# Sixteen characters make 64 names, so that some names are similar.
BRANDS = tuple(
    first + second + ("", "", "曼")[(i + j) % 3]
    for i, first in enumerate("华森雅朗安锦云佳")
    for j, second in enumerate("诺莱迪克尔斯达薇")
)


@dataclasses.dataclass(frozen=True)
class Attributes:
    """The visible attributes of a product, unique within a release; sprites.py draws them."""

    category: str
    base: str  # color of the body
    second: str  # color of the pattern; never the base color
    pattern: str
    mark: str
    proportion: str
    trim: str | None = None  # color of handles, straps, soles …; None: the second color
    ink: str | None = None  # color of the mark; None: dark or light, unlike the base color
    scale: str = "regular"  # of the pattern
    finish: str = "matte"


@dataclasses.dataclass(frozen=True)
class Product:
    """A product: its id, its visible attributes, and names that are heard and read, never seen."""

    product_id: int
    attributes: Attributes
    brand: str
    origin: str | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The values of all products of a release, and how much else is said in its clips."""

    number: int
    attributes: Mapping[str, tuple[str, ...]]
    names: Mapping[str, tuple[str, ...]]
    chatter: tuple[int, int]  # number of sentences in a transcript that are not about a product


# A release of an older recipe is not taken for a current one: if drawings or texts change, increment the number.
RECIPES = {
    6: Recipe(
        number=6,
        attributes={
            "category": CATEGORIES,
            "base": tuple(COLORS),
            "second": tuple(COLORS),
            "pattern": ("plain", "horizontal", "vertical", "diagonal", "dots", "checks", "zigzag", "halves", "grid"),
            "mark": ("none", *MARKS),
            "proportion": PROPORTIONS,
        },
        names={"brand": BRANDS},
        chatter=(4, 7),
    ),
    # Patterns have a scale and marks a color, so there is neither a plain product nor one without a mark.
    7: Recipe(
        number=7,
        attributes={
            "category": CATEGORIES,
            "base": tuple(COLORS),
            "second": tuple(COLORS),
            "pattern": ("horizontal", "vertical", "diagonal", "dots", "checks", "zigzag", "argyle", "grid"),
            "mark": (*MARKS, "diamond"),
            "proportion": PROPORTIONS,
            "trim": tuple(COLORS),
            "ink": tuple(COLORS),
            "scale": ("fine", "regular", "coarse"),
            "finish": ("matte", "glossy", "ombre"),
        },
        names={
            "brand": BRANDS,
            "origin": (
                "yiwu", "guangzhou", "hangzhou", "wenzhou", "quanzhou", "dongguan", "foshan", "shantou",
                "suzhou", "ningbo", "qingdao", "chengdu", "wuhan", "jinjiang", "shanghai", "xiamen",
            ),
        },
        chatter=(1, 3),
    ),
}  # fmt: skip
DEFAULT_RECIPE = 7


def find_recipe(number: int) -> Recipe:
    """Returns a recipe by its number.

    Raises:
        ValueError: There is no such recipe.
    """
    if number not in RECIPES:
        raise ValueError(f"there is no recipe {number}; choose from {', '.join(map(str, RECIPES))}")
    return RECIPES[number]


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


def sample_products(train: int, test: int, seed: int, recipe: Recipe) -> tuple[list[Product], list[Product]]:
    """Draws the training and the test products, all with different attributes.

    Families do not extend over both splits. Ids are a random permutation over both.
    """
    taken: set[Attributes] = set()
    drawn = [
        *_sample_split(train, recipe, generator(seed, "products", "train"), taken),
        *_sample_split(test, recipe, generator(seed, "products", "test"), taken),
    ]
    ids = generator(seed, "product ids").permutation(len(drawn)) + 1
    products = [Product(int(i), attributes, **names) for i, (attributes, names) in zip(ids, drawn, strict=True)]
    return products[:train], products[train:]


def _sample_split(
    count: int, recipe: Recipe, rng: np.random.Generator, taken: set[Attributes]
) -> list[tuple[Attributes, dict[str, str]]]:
    """Returns `count` new combinations and their names in random order, and adds them to `taken`."""
    families = list(_family_sizes(round(count * NEAR_DUPLICATES), rng))
    sizes = families + [1] * (count - sum(families))
    drawn = []
    names = _rows(recipe.names, len(sizes), rng)
    founders = _founders(recipe, len(sizes), rng)
    for founder, own_names, size in zip(founders, names, sizes, strict=True):
        while founder in taken:
            founder = next(_founders(recipe, 1, rng))
        taken.add(founder)
        relatives = _relatives(founder, size - 1, recipe, rng, taken)
        taken.update(relatives)
        drawn += [(member, own_names) for member in (founder, *relatives)]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def _family_sizes(members: int, rng: np.random.Generator) -> Iterator[int]:
    """Yields sizes of families, at least two, that add up to `members` or one less."""
    while members >= min(FAMILY_SIZES):
        size = min(int(rng.choice(FAMILY_SIZES)), members)
        yield size
        members -= size


def _rows(columns: Mapping[str, tuple[str, ...]], count: int, rng: np.random.Generator) -> list[dict[str, str]]:
    """Returns `count` rows of independent values; each value is equally often, so that even few products have all."""
    drawn = [[values[i] for i in rng.permutation(np.arange(count) % len(values))] for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*drawn, strict=True)]


def _founders(recipe: Recipe, count: int, rng: np.random.Generator) -> Iterator[Attributes]:
    for row in _rows(recipe.attributes, count, rng):
        attributes = Attributes(**row)
        while attributes.second == attributes.base:
            attributes = dataclasses.replace(attributes, second=str(rng.choice(recipe.attributes["second"])))
        yield attributes


def _relatives(
    founder: Attributes, count: int, recipe: Recipe, rng: np.random.Generator, taken: set[Attributes]
) -> list[Attributes]:
    """Returns `count` new combinations that differ from the founder and one another in the same attribute."""
    for name in rng.permutation(list(recipe.attributes)):
        changed = [dataclasses.replace(founder, **{str(name): value}) for value in recipe.attributes[name]]
        free = [c for c in changed if c != founder and c.base != c.second and c not in taken]
        if len(free) >= count:
            return [free[i] for i in rng.choice(len(free), count, replace=False)]
    raise ValueError(f"fewer than {count} free combinations are left next to {founder}; ask for fewer products")

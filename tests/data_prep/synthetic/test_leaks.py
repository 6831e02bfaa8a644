"""Tests that only pictures and texts reveal the product of an item: not ids, names, times, sizes or order.

Each feature of an item is used alone to find the same product in another domain. `retrieval` is the probability that
an item of the same product is nearer to the query than another one: 0.5 if the feature contains no information.
`attribute_signal` measures whether the mean of a feature depends on an attribute: the p-value of an F test, in standard
deviations of a normal variable. By chance, a few of hundreds of such tests are above 3, hardly any above 4.
"""

import collections
import itertools

import numpy as np
import pytest
from scipy.stats import f, norm

from data_prep.catalog.release_parser import FILES
from data_prep.common.domains import DOMAINS
from data_prep.synthetic.products import RECIPES
from data_prep.synthetic.release import plan_release, text_files, write_release

PAIRS = tuple(itertools.permutations(DOMAINS, 2))
SEED = 0


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request):
    return RECIPES[request.param]


@pytest.fixture(scope="module")
def plan(recipe):
    return plan_release(40, 220, SEED, recipe.number)


@pytest.fixture(scope="module")
def items(plan):
    return {d: [i for i in plan.items if (i.split, i.domain) == ("test", d)] for d in DOMAINS}


@pytest.fixture(scope="module")
def positions(plan):
    """Number of the first row by domain, kind of file and item id."""
    tables = dict(text_files(plan, SEED))
    found = collections.defaultdict(dict)
    for domain, names in FILES.items():
        for kind, name in zip(("pairs", "texts", "frames"), names, strict=True):
            first = {}
            for number, row in enumerate(tables[f"test_{name}.txt"]):
                first.setdefault(int(row.split(",")[kind == "pairs"]), number)
            found[domain][kind] = first
    return found


def ranks(values) -> np.ndarray:
    """Returns ranks from 0 to 1, because features of different domains have different ranges; ties share a rank."""
    _, inverse, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - counts / 2)[inverse] / len(inverse)


def owned(items) -> np.ndarray:
    """Returns which products each item has, bool[items, more than the largest product id]."""
    table = np.zeros((len(items), 300), bool)
    for row, item in zip(table, items, strict=True):
        row[[product.product_id for product in item.products]] = True
    return table


def retrieval(items, features, query, gallery) -> float:
    q, g = ranks(features[query]), ranks(features[gallery])
    distances = np.abs(q[:, None] - g)
    rights = owned(items[query]) @ owned(items[gallery]).T
    found = []
    for row, right in zip(distances, rights, strict=True):
        if right.any():
            closer = row[right][:, None] - row[~right]
            found.append(((closer < 0) + 0.5 * (closer == 0)).mean())
    return float(np.mean(found))


def attribute_signal(products, values, attribute) -> float:
    groups = collections.defaultdict(list)
    for product, value in zip(products, ranks(values), strict=True):
        groups[getattr(product.attributes, attribute)].append(value)
    groups = [np.array(group) for group in groups.values()]
    every = np.concatenate(groups)
    between = sum(len(g) * (g.mean() - every.mean()) ** 2 for g in groups) / (len(groups) - 1)
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (len(every) - len(groups))
    return float(norm.isf(f.sf(between / within, len(groups) - 1, len(every) - len(groups))))


FEATURES = {
    "item id": lambda item, positions: item.item_id,
    "first image name": lambda item, positions: int(item.frames[0][1][:8], 16),
    "row in the pair file": lambda item, positions: positions[item.domain]["pairs"][item.item_id],
    "row in the text file": lambda item, positions: positions[item.domain]["texts"][item.item_id],
    "first row in the frame file": lambda item, positions: positions[item.domain]["frames"][item.item_id],
}
CLIP_FEATURES = {
    "number of frames": lambda item, positions: len(item.frames),
    "first frame time": lambda item, positions: item.frames[0][0],
    "duration": lambda item, positions: item.frames[-1][0] - item.frames[0][0],
}


@pytest.mark.parametrize("name", [*FEATURES, *CLIP_FEATURES])
def test_no_feature_finds_the_product_in_another_domain(items, positions, name):
    feature = (FEATURES | CLIP_FEATURES)[name]
    features = {d: [feature(item, positions) for item in items[d]] for d in DOMAINS}
    for query, gallery in PAIRS:
        if name in FEATURES or "page" not in (query, gallery):
            assert retrieval(items, features, query, gallery) == pytest.approx(0.5, abs=0.05), (
                query,
                gallery,
            )


@pytest.mark.parametrize("name", [*FEATURES, *CLIP_FEATURES])
def test_no_feature_reveals_an_attribute_or_the_product_id(recipe, items, positions, name):
    feature = (FEATURES | CLIP_FEATURES)[name]
    for domain in DOMAINS:
        if domain == "page" and name in CLIP_FEATURES:
            continue
        values = [feature(item, positions) for item in items[domain]]
        owners = [item.products[0] for item in items[domain]]
        for attribute in recipe.attributes:
            assert attribute_signal(owners, values, attribute) < 4, (domain, attribute)
        ids = ranks([product.product_id for product in owners])
        assert abs(np.corrcoef(ranks(values), ids)[0, 1]) < 0.2, domain


def test_product_ids_reveal_neither_attributes_nor_the_split(recipe, plan):
    for attribute in recipe.attributes:
        ids = [product.product_id for product in plan.products["test"]]
        assert attribute_signal(plan.products["test"], ids, attribute) < 4
    train, test = ([p.product_id for p in plan.products[split]] for split in ("train", "test"))
    assert np.mean(train) == pytest.approx(np.mean(test), rel=0.25)


def test_image_names_of_an_item_have_different_prefixes(items):
    for item in itertools.chain(items["video"], items["live"]):
        beginnings = {name[:6] for _, name in item.frames}
        assert len(beginnings) == len(item.frames)


def test_sizes_of_the_image_files_find_no_product(tmp_path, recipe):
    """Sizes depend on the picture (patterns need more bytes), but clutter, noise and quality hide that."""
    sizes = {"train_products": 8, "test_products": 180, "image_side": 48, "seed": SEED}
    directory = write_release(tmp_path / "r", **sizes, recipe=recipe.number)
    plan = plan_release(8, 180, SEED, recipe.number)
    items = {d: [i for i in plan.items if (i.split, i.domain) == ("test", d)] for d in DOMAINS}
    bytes_per_item = {
        domain: [np.mean([(directory / "images" / name).stat().st_size for _, name in i.frames]) for i in group]
        for domain, group in items.items()
    }
    for query, gallery in PAIRS:
        assert retrieval(items, bytes_per_item, query, gallery) == pytest.approx(0.5, abs=0.07), (query, gallery)


def test_the_measures_find_a_leak(recipe, items):
    """Checks that both measures detect an id that depends on the product or an attribute, even with much noise."""
    rng = np.random.default_rng(0)
    noisy = {d: [i.products[0].product_id + rng.normal(0, 60) for i in items[d]] for d in DOMAINS}
    assert all(retrieval(items, noisy, *pair) > 0.6 for pair in PAIRS)
    shapes = sorted(recipe.attributes["category"])
    leaking = [shapes.index(item.shown[0].category) + rng.normal(0, 8) for item in items["live"]]
    assert attribute_signal([item.products[0] for item in items["live"]], leaking, "category") > 4

"""Tests the attributes of products and the random generators."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from scipy.stats import chi2

from data_prep.synthetic import products
from data_prep.synthetic.products import BRANDS, RECIPES, Attributes, find_recipe, generator, sample_products


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request):
    return RECIPES[request.param]


@pytest.fixture(scope="module")
def splits(recipe):
    return sample_products(1500, 220, 0, recipe)


def entropy(*columns) -> float:
    """Returns the entropy in bits of the joint frequencies of some columns."""
    _, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def differences(some) -> np.ndarray:
    """Returns the number of differing attributes of any two products, int[n, n]."""
    return differing([product.attributes for product in some])


def differing(attributes) -> np.ndarray:
    rows = np.array([dataclasses.astuple(row) for row in attributes], str)
    return (rows[:, None] != rows).sum(-1)


def test_products_are_distinct_combinations(splits):
    train, test = splits
    assert (len(train), len(test)) == (1500, 220)
    assert len({product.attributes for product in train + test}) == 1720
    assert all(product.attributes.base != product.attributes.second for product in train + test)
    assert sorted(product.product_id for product in train + test) == list(range(1, 1721))


@pytest.mark.parametrize(("number", "bits"), [(6, 26.08), (7, 41.08)])
def test_attributes_and_names_are_independent_and_have_this_many_bits(number, bits):
    """Checks the entropies of the founders of many families: of each attribute and name, and of any two together."""
    rng, recipe, count = np.random.default_rng(0), RECIPES[number], 20_000
    founders, names = products._founders(recipe, count, rng), products._rows(recipe.names, count, rng)
    rows = [dataclasses.asdict(founder) | own for founder, own in zip(founders, names, strict=True)]
    columns = {
        name: np.unique([row[name] for row in rows], return_inverse=True)[1]
        for name in (*recipe.attributes, *recipe.names)
    }
    total = sum(entropy(column) for column in columns.values())
    for (one, a), (other, b) in itertools.combinations(columns.items(), 2):
        common = entropy(a) + entropy(b) - entropy(a, b)
        if {one, other} == {"base", "second"}:  # never the same color
            total -= common
        else:  # for independent columns, it is distributed as chi-squared / (2 n ln 2)
            assert 2 * count * np.log(2) * common < chi2.isf(1e-6, a.max() * b.max()), (one, other)
    assert total == pytest.approx(bits, abs=0.02)


def test_numbers_of_recipes_find_them():
    assert {number: find_recipe(number).number for number in RECIPES} == {6: 6, 7: 7}
    with pytest.raises(ValueError, match="there is no recipe 5; choose from 6, 7"):
        find_recipe(5)


def test_every_value_of_every_attribute_occurs_in_training(splits, recipe):
    for name, values in recipe.attributes.items():
        counts = collections.Counter(getattr(product.attributes, name) for product in splits[0])
        assert set(counts) == set(values)
        assert min(counts.values()) > 1500 / len(values) / 2, name


def test_about_a_third_of_products_have_a_near_duplicate(splits):
    for split in splits:
        near = (differences(split) == 1).any(axis=1).mean()
        assert 0.28 < near < 0.48


def test_a_family_differs_in_one_attribute_and_shares_its_names(recipe):
    drawn = products._sample_split(60, recipe, np.random.default_rng(5), taken=set())
    rows = np.array([dataclasses.astuple(attributes) for attributes, _ in drawn], str)
    near = differing([attributes for attributes, _ in drawn]) == 1
    relatives = [np.flatnonzero(row) for row in near]
    assert 18 <= sum(bool(len(group)) for group in relatives) <= 26
    same_names = sum(drawn[i][1] == drawn[group[0]][1] for i, group in enumerate(relatives) if len(group))
    assert same_names >= 18
    families = {tuple(sorted((i, *group))) for i, group in enumerate(relatives) if len(group)}
    assert {len(family) for family in families} <= {2, 3, 4}
    for family in families:
        members = rows[list(family)]
        assert sum(len(set(column)) > 1 for column in members.T) == 1


def test_families_differ_in_every_attribute(splits, recipe):
    one, other = np.nonzero(np.triu(differences(splits[0]) == 1))
    rows = np.array([dataclasses.astuple(product.attributes) for product in splits[0]], str)
    places = collections.Counter((rows[one] != rows[other]).argmax(axis=1).tolist())
    assert set(places) == set(range(len(recipe.attributes)))


def test_brands_are_short_names_that_several_products_share(splits):
    assert len(BRANDS) == len(set(BRANDS)) >= 60
    assert {len(brand) for brand in BRANDS} == {2, 3}
    train, test = ({product.brand for product in split} for split in splits)
    assert train == set(BRANDS)
    assert test <= train
    assert min(collections.Counter(product.brand for product in splits[0]).values()) > 5


def test_the_seed_determines_the_products(recipe):
    assert sample_products(30, 20, 1, recipe) == sample_products(30, 20, 1, recipe)
    one, other = ({p.attributes for p in sample_products(30, 20, seed, recipe)[0]} for seed in (1, 2))
    assert len(one & other) <= 1


def test_too_few_free_combinations_are_an_error():
    founder = Attributes("bag", "red", "navy", "dots", "star", "tall")
    values = RECIPES[6].attributes
    taken = {dataclasses.replace(founder, **{name: value}) for name in values for value in values[name]}
    with pytest.raises(ValueError, match=r"fewer than 2 free combinations are left next to .*bag"):
        products._relatives(founder, 2, RECIPES[6], np.random.default_rng(0), taken)


def test_a_generator_depends_only_on_the_seed_and_the_purpose():
    draws = generator(3, "frames", "video", 17).integers(1000, size=8).tolist()
    generator(3, "frames", "video", 18).integers(1000, size=8)
    assert generator(3, "frames", "video", 17).integers(1000, size=8).tolist() == draws
    others = [
        (4, "frames", "video", 17),
        (3, "frame", "video", 17),
        (3, "frames", "live", 17),
        (3, "frames", 17),
    ]
    assert all(generator(*other).integers(1000, size=8).tolist() != draws for other in others)


def test_draws_stay_the_same_from_version_to_version():
    assert generator(0, "products").integers(1000, size=4).tolist() == [990, 392, 424, 36]

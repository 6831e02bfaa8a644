"""Tests the attributes of products and the random generators."""

import collections
import dataclasses

import numpy as np
import pytest

from data_prep.synthetic import products
from data_prep.synthetic.products import BRANDS, VALUES, Attributes, generator, sample_products


@pytest.fixture(scope="module")
def splits():
    return sample_products(1500, 220, seed=0)


def differences(some) -> np.ndarray:
    """Returns the number of differing attributes of any two products, int[n, n]."""
    rows = np.array([dataclasses.astuple(product.attributes) for product in some])
    return (rows[:, None] != rows).sum(-1)


def test_products_are_distinct_combinations_of_at_least_six_attributes(splits):
    train, test = splits
    assert (len(train), len(test)) == (1500, 220)
    assert len(dataclasses.fields(Attributes)) >= 6
    assert len({product.attributes for product in train + test}) == 1720
    assert all(product.attributes.base != product.attributes.second for product in train + test)
    assert sorted(product.product_id for product in train + test) == list(range(1, 1721))


def test_every_value_of_every_attribute_occurs_in_training(splits):
    for name, values in VALUES.items():
        counts = collections.Counter(getattr(product.attributes, name) for product in splits[0])
        assert set(counts) == set(values)
        assert min(counts.values()) > 1500 / len(values) / 2, name


def test_about_a_third_of_products_have_a_near_duplicate(splits):
    for split in splits:
        near = (differences(split) == 1).any(axis=1).mean()
        assert 0.28 < near < 0.48


def test_a_family_differs_in_one_attribute_and_shares_its_brand():
    drawn = products._sample_split(60, np.random.default_rng(5), taken=set())
    rows = np.array([dataclasses.astuple(attributes) for attributes, _ in drawn])
    near = (rows[:, None] != rows).sum(-1) == 1
    relatives = [np.flatnonzero(row) for row in near]
    assert 18 <= sum(bool(len(group)) for group in relatives) <= 26
    same_brand = sum(drawn[i][1] == drawn[group[0]][1] for i, group in enumerate(relatives) if len(group))
    assert same_brand >= 18
    families = {tuple(sorted((i, *group))) for i, group in enumerate(relatives) if len(group)}
    assert {len(family) for family in families} <= {2, 3, 4}
    for family in families:
        members = rows[list(family)]
        assert sum(len(set(column)) > 1 for column in members.T) == 1


def test_brands_are_short_names_that_several_products_share(splits):
    assert len(BRANDS) == len(set(BRANDS)) >= 60
    assert {len(brand) for brand in BRANDS} == {2, 3}
    train, test = ({product.brand for product in split} for split in splits)
    assert train == set(BRANDS)
    assert test <= train
    assert min(collections.Counter(product.brand for product in splits[0]).values()) > 5


def test_the_seed_determines_the_products():
    assert sample_products(30, 20, seed=1) == sample_products(30, 20, seed=1)
    one, other = ({p.attributes for p in sample_products(30, 20, seed=s)[0]} for s in (1, 2))
    assert len(one & other) <= 1


def test_too_few_free_combinations_are_an_error():
    founder = Attributes("bag", "red", "navy", "dots", "star", "tall")
    taken = {dataclasses.replace(founder, **{name: value}) for name, values in VALUES.items() for value in values}
    with pytest.raises(ValueError, match=r"fewer than 2 free combinations are left next to .*bag"):
        products._relatives(founder, 2, np.random.default_rng(0), taken)


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

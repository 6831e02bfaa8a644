"""Tests the plan of a release."""

import collections
import re

import numpy as np
import pytest

from data_prep.common.domains import DOMAINS
from data_prep.synthetic.plan import plan_release


@pytest.fixture(scope="module")
def plan():
    return plan_release(1500, 220, seed=0)


def of(plan, split, domain):
    return [item for item in plan.items if (item.split, item.domain) == (split, domain)]


def test_every_domain_of_the_test_split_has_at_least_400_items(plan):
    assert len(plan.products["test"]) == 220
    for domain in DOMAINS:
        assert len(of(plan, "test", domain)) >= 400


def test_a_product_has_one_to_four_items_in_a_domain(plan):
    counts = collections.Counter((item.domain, item.products[0].product_id) for item in plan.items)
    assert set(counts.values()) == {1, 2, 3, 4}


def test_some_products_lack_one_domain_but_none_lacks_two(plan):
    for split, products in plan.products.items():
        has = {d: {p.product_id for item in of(plan, split, d) for p in item.products} for d in DOMAINS}
        lacking = collections.Counter(
            sum(product.product_id not in has[domain] for domain in DOMAINS) for product in products
        )
        assert set(lacking) == {0, 1}
        assert lacking[1] / len(products) == pytest.approx(0.08, abs=0.01)
        for domain in DOMAINS:
            assert 0.02 < 1 - len(has[domain]) / len(products) < 0.035


def test_some_items_belong_to_two_products_of_their_split(plan):
    assert collections.Counter(len(set(item.products)) for item in plan.items).keys() == {1, 2}
    assert np.mean([len(item.products) == 2 for item in plan.items]) == pytest.approx(0.05, abs=0.01)
    split_of = {p.product_id: split for split, products in plan.products.items() for p in products}
    assert all(split_of[p.product_id] == item.split for item in plan.items for p in item.products)


def test_clips_have_four_to_twelve_frames_and_pages_one(plan):
    counts = {domain: {len(i.frames) for i in plan.items if i.domain == domain} for domain in DOMAINS}
    assert counts == {"page": {1}, "video": set(range(4, 13)), "live": set(range(4, 13))}
    mean = np.mean([len(item.frames) for item in plan.items if item.domain != "page"])
    assert mean == pytest.approx(6.5, abs=0.1)


def test_frames_are_in_time_order_with_the_durations_of_lives(plan):
    for item in plan.items:
        times = [time for time, _ in item.frames]
        assert times == sorted(set(times))
    spans = [item.frames[-1][0] - item.frames[0][0] for item in plan.items if item.domain == "live"]
    assert 60_000 < np.median(spans) < 20 * 60_000
    assert all(len(str(item.frames[0][0])) == 13 for item in plan.items if item.domain == "live")


def test_ids_are_unique_within_a_domain_and_repeat_across_domains(plan):
    ids = {domain: sorted(i.item_id for i in plan.items if i.domain == domain) for domain in DOMAINS}
    for domain in DOMAINS:
        assert ids[domain] == list(range(1, len(ids[domain]) + 1))


def test_image_names_look_like_the_real_ones_and_never_repeat(plan):
    names = [name for item in plan.items for _, name in item.frames]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.jpg", name) for name in names)


def test_shelves_contain_products_of_their_own_split(plan):
    for split, products in plan.products.items():
        assert len(plan.shelves[split]) == 96
        assert set(plan.shelves[split]) <= {product.attributes for product in products}

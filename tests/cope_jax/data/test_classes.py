"""The classes of products."""

import numpy as np
import pytest

from cope_jax.data.classes import product_ids, to_classes
from cope_jax.data.records import ProductRecords, Records, open_records


class Shuffled:
    """A source of records in another order, as a release may number its products."""

    def __init__(self, source, order):
        self.source, self.order = source, order

    def __len__(self):
        return len(self.order)

    def __getitems__(self, rows):
        return [self.source[self.order[row]] for row in rows]


def test_ids_are_sorted_and_each_there_once(data_dir, content):
    records = open_records(data_dir, "train")
    order = [7, 2, 12, 0, 5, 5, 1, 9, 3, 11, 4, 6, 8, 10, 2]
    source = Shuffled(records.products.source, order)
    shuffled = Records(items=records.items, products=ProductRecords(source, {}, records.products.starts))
    for split in (records, shuffled):
        found = product_ids(split)
        assert found.dtype == np.int32
        assert found.tolist() == sorted(content.products)


@pytest.mark.parametrize("chunk", [1, 5, 13, 4096])
def test_ids_come_in_the_order_of_the_records_whatever_the_chunk(data_dir, content, chunk):
    ids = open_records(data_dir, "train").products.ids(chunk=chunk)
    assert ids.dtype == np.int64
    assert ids.tolist() == list(content.products)


def test_an_id_that_batches_cannot_hold_is_refused(data_dir, monkeypatch):
    monkeypatch.setattr(ProductRecords, "ids", lambda self: np.array([5, 2**31]))
    with pytest.raises(ValueError, match="product id 2147483648 is outside"):
        product_ids(open_records(data_dir, "train"))


def test_a_class_is_the_place_of_the_id():
    known = np.array([3, 5, 9], np.int32)
    ids = np.array([[5, -1], [9, 4], [3, 10], [2, 2**31 - 1]], np.int32)
    classes = to_classes(ids, known)
    assert classes.dtype == np.int32
    assert classes.tolist() == [[1, -1], [2, -1], [0, -1], [-1, -1]]


def test_classes_lead_back_to_the_ids():
    rng = np.random.default_rng(0)
    known = np.sort(rng.choice(10_000, size=700, replace=False)).astype(np.int32)
    ids = rng.integers(-1, 10_000, size=(31, 4)).astype(np.int32)
    expected = [[known.tolist().index(number) if number in known else -1 for number in row] for row in ids]
    assert to_classes(ids, known).tolist() == expected
    assert to_classes(known, known).tolist() == list(range(700))

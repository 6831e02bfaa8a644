"""Classes of products: a product's class is the place of its id among the sorted ids of the training split."""

import numpy as np

from cope_jax.data.collate import checked_id
from cope_jax.data.records import Records

NO_CLASS = -1


def product_ids(records: Records) -> np.ndarray:
    """The ids of all products of a split, int32[C], sorted, each once: class c is the product with the c-th id.

    Raises:
      ValueError: an id is negative or needs more than 32 bits, which batches cannot hold.
    """
    return np.array([checked_id(number) for number in np.unique(records.products.ids()).tolist()], np.int32)


def to_classes(ids: np.ndarray, product_ids: np.ndarray) -> np.ndarray:
    """Product ids of any shape → their classes, int32 of that shape; −1 for padding and for other products.

    With the products (3, 5, 9), [[5, -1], [9, 4]] gives [[1, -1], [2, -1]].

    Args:
      ids: int32, padded with −1.
      product_ids: int32[C] as from the function of that name, at least one.
    """
    place = np.minimum(np.searchsorted(product_ids, ids), len(product_ids) - 1)
    return np.where(product_ids[place] == ids, place, NO_CLASS).astype(np.int32)

"""Hard batches: groups of similar products, and batches with several products of a group."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SIZE = 8  # products per group
CELL = 4096  # products that are compared with each other; more would take too much memory


def group_products(vectors: np.ndarray) -> np.ndarray:
    """Returns an order int32[P] of products with embeddings float32[P, E], in which those of a group are consecutive.

    Each group has SIZE products (the last one may have fewer): one and its nearest neighbors that are not in a group
    yet. Neighbors are looked for in cells, which halve the products along their principal direction.
    """
    cells, order = [np.arange(len(vectors))], []
    while cells:
        rows = cells.pop()
        own = vectors[rows]
        if len(rows) > CELL:
            centered = own - own.mean(axis=0)
            direction = np.linalg.eigh(centered.T @ centered)[1][:, -1]
            sorted_rows = rows[np.argsort(centered @ direction, kind="stable")]
            middle = len(rows) // 2 // SIZE * SIZE  # cells have whole groups
            cells += [sorted_rows[middle:], sorted_rows[:middle]]
            continue
        similarities = own @ own.T
        free = np.arange(len(rows))
        while len(free):
            similarities[free[0], free[0]] = np.inf  # first in its group
            nearest = np.argsort(-similarities[free[0], free], kind="stable")[:SIZE]
            order.append(rows[free[nearest]])
            free = np.delete(free, nearest)
    return np.concatenate(order).astype(np.int32)


@dataclass(frozen=True)
class Groups:
    """Groups of similar products, and the share of a batch that is drawn from the groups of its other products."""

    order: np.ndarray  # int32[P], from `group_products`
    share: float

    @cached_property
    def places(self) -> np.ndarray:
        """Place of each product in the order, int64[P]."""
        return np.argsort(self.order)

    def mix(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows of the products of a batch int64[B] with the last ones replaced by neighbors of the first.

        No product is added that the batch already has.
        """
        count = int(self.share * len(rows))
        kept = rows[: len(rows) - count].tolist()
        starts = (self.places[kept] // SIZE * SIZE).tolist()
        neighbors = dict.fromkeys(row for start in starts for row in self.order[start : start + SIZE].tolist())
        present = set(kept)
        added = [neighbor for neighbor in neighbors if neighbor not in present][:count]
        present.update(added)
        others = sorted(rows[len(kept) :].tolist(), key=present.__contains__)  # in order, those that are new first
        return np.array([*kept, *added, *others][: len(rows)], rows.dtype)

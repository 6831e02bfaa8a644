"""Rows that come in order, cut into the pieces of which lists are made."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class OrderedRows:
    """Takes record batches that are ordered by an int64 column `row` and gives them out up to one row after another."""

    def __init__(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]):
        self._schema = schema
        self._batches = _in_order(batches)
        self._held: pa.RecordBatch | None = next(self._batches, None)

    def until(self, stop: int) -> pa.RecordBatch:
        """Returns what is left of the rows below `stop`, as one batch."""
        parts = []
        while self._held is not None:
            cut = int(np.searchsorted(self._held.column("row").to_numpy(), stop))
            parts.append(self._held.slice(0, cut))
            if cut < self._held.num_rows:
                self._held = self._held.slice(cut)
                break
            self._held = next(self._batches, None)
        return pa.concat_batches(parts) if parts else pa.RecordBatch.from_pylist([], self._schema)

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Yields what is left."""
        if self._held is not None:
            yield self._held
            yield from self._batches


def _in_order(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    last = 0
    for batch in batches:
        rows = np.concatenate(([last], batch.column("row").to_numpy()))
        assert (rows[1:] >= rows[:-1]).all()  # a sort that is none would tear items apart in silence
        last = rows[-1]
        yield batch


def first_of_each(batch: pa.RecordBatch, columns: Sequence[str]) -> np.ndarray:
    """Returns which rows differ from the one before in one of the columns, bool [rows]; the first one does."""
    differs = np.zeros(batch.num_rows, bool)
    differs[:1] = True
    for name in columns:
        column = batch.column(name)
        differs[1:] |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return differs


def lists(batch: pa.RecordBatch, name: str, start: int, stop: int) -> pa.ListArray:
    """Returns for each row in [start, stop) the list of its values in a batch that is ordered by `row`."""
    ends = np.searchsorted(batch.column("row").to_numpy(), np.arange(start, stop + 1))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), batch.column(name))

"""Reads Parquet files at any path: unlike DuckDB and pyarrow, no part of it counts as a pattern, a column or a URL."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 16_384


@contextlib.contextmanager
def open_parquet(path: Path, *, remedy: str = "") -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file; raises ValueError, with a remedy, if it is cut off or damaged, also where it is read."""
    try:
        with path.open("rb") as file, pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the system; the file may be valid
            raise
        raise ValueError(f"{path} is not a whole Parquet file: {error}{remedy and f'; {remedy}'}") from error


def read_range(
    file: pq.ParquetFile, start: int = 0, stop: int | None = None, *, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yields the rows [start, stop) of a file, by default to the end, with one row group in memory at a time."""
    stop = file.metadata.num_rows if stop is None else stop
    sizes = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
    bounds = list(itertools.accumulate(sizes, initial=0))
    # One iterator over all groups: opening one per group would cost more than a batch.
    wanted = [i for i, (first, end) in enumerate(itertools.pairwise(bounds)) if first < stop and end > start]
    row = bounds[wanted[0]] if wanted else 0
    for batch in file.iter_batches(batch_rows, row_groups=wanted):
        first, last = max(start - row, 0), min(stop - row, batch.num_rows)
        if first < last:
            yield batch.slice(first, last - first)
        row += batch.num_rows


def stream_parquet(path: Path, columns: Sequence[str]) -> pa.RecordBatchReader:
    """Returns a stream of some columns of a Parquet file, for DuckDB to read once."""
    with open_parquet(path) as parquet:
        schema = pa.schema([parquet.schema_arrow.field(name) for name in columns])

    def batches() -> Iterator[pa.RecordBatch]:
        with open_parquet(path) as parquet:
            yield from parquet.iter_batches(BATCH_ROWS, columns=list(columns))

    return pa.RecordBatchReader.from_batches(schema, batches())

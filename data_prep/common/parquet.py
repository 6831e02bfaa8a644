"""Reads Parquet files at any path: unlike DuckDB and pyarrow, no part of it counts as a pattern, a column or a URL."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 16_384


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file; raises ValueError if it is cut off or damaged."""
    with path.open("rb") as file:
        try:
            parquet = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # of the system; the file may be valid
                raise
            raise ValueError(f"{path} is not a whole Parquet file: {error}") from error
        with parquet:
            yield parquet


def stream_parquet(path: Path, columns: Sequence[str]) -> pa.RecordBatchReader:
    """Returns a stream of some columns of a Parquet file, for DuckDB to read once."""
    with open_parquet(path) as parquet:
        schema = pa.schema([parquet.schema_arrow.field(name) for name in columns])

    def batches() -> Iterator[pa.RecordBatch]:
        with open_parquet(path) as parquet:
            yield from parquet.iter_batches(BATCH_ROWS, columns=list(columns))

    return pa.RecordBatchReader.from_batches(schema, batches())

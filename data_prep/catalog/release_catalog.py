"""Builds a catalog from the text files of a release."""

import codecs
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from data_prep.catalog import release_parser
from data_prep.catalog.builder import MAX_REJECTED, MEMORY_LIMIT, CatalogRows, build_catalog
from data_prep.catalog.files import Catalog
from data_prep.catalog.rejected_lines import RejectedLines
from data_prep.catalog.release_parser import PREFIXES, DomainFiles, Layout, release_files
from data_prep.catalog.split_writer import DomainRows, RowSource
from data_prep.common.files import file_sha256
from data_prep.common.progress import Progress


def build_release_catalog(
    release: Path,
    out: Path,
    *,
    splits: tuple[str, ...] = tuple(PREFIXES),
    prefixes: Mapping[str, str] | None = None,
    memory_limit: str = MEMORY_LIMIT,
    max_rejected: float = MAX_REJECTED,
    report: Callable[[str], None] = print,
) -> Catalog:
    """Builds the catalog of a release, or returns the finished one.

    Args:
        release: Folder with the text files.
        out: Folder of the catalog.
        splits: Splits to include.
        prefixes: Split → prefix of its file names. By default those of `PREFIXES`.
        memory_limit: Memory limit of DuckDB, for example "3GB".
        max_rejected: Fraction of a file's lines that may be invalid.
        report: Called with lines of progress.
    """
    if not splits or len(set(splits)) < len(splits):
        raise ValueError(f"splits are {list(splits)}: choose at least one, each once")
    files = {split: release_files(release, split, prefix=(prefixes or {}).get(split)) for split in splits}

    def load(con: duckdb.DuckDBPyConnection, folder: Path) -> CatalogRows:
        rows: dict[str, dict[str, DomainRows]] = {split: {} for split in splits}
        for split, domains in files.items():
            for domain, paths in domains.items():
                sources = map(partial(_source, split, max_rejected), paths, release_parser.LAYOUTS[domain])
                rows[split][domain] = DomainRows(*sources)
        return CatalogRows((), rows)

    return build_catalog(out, _hashes(files), load, memory_limit=memory_limit, report=report)


def _hashes(files: Mapping[str, Mapping[str, DomainFiles]]) -> dict[str, str]:
    """Returns "split domain part" → SHA-256 of the file, which identifies a release wherever it is stored."""
    paths = {
        f"{split} {domain} {part}": path
        for split, domains in files.items()
        for domain, domain_files in domains.items()
        for part, path in domain_files._asdict().items()
    }
    with ThreadPoolExecutor(2) as pool:  # hashing releases the GIL
        return dict(zip(paths, pool.map(file_sha256, paths.values()), strict=True))


def _source(split: str, max_rejected: float, path: Path, layout: Layout) -> RowSource:
    with path.open("rb") as file:
        bom = file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
    rejected = RejectedLines(split, path.name, max_rejected, partial(release_parser.read_lines, path), bom=bom)

    def load(con: duckdb.DuckDBPyConnection) -> None:
        batches = _read_rows(path, layout, rejected)
        con.register("source", pa.RecordBatchReader.from_batches(release_parser.line_schema(layout), batches))

    return RowSource(load, rejected)


def _read_rows(path: Path, layout: Layout, rejected: RejectedLines) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a file, collects the other lines and shows progress if it takes long."""
    with Progress(
        total=path.stat().st_size, desc=path.name, unit="bytes", unit_scale=True, delay=1, leave=False
    ) as progress:
        for block in release_parser.parse_file(path, layout):
            rejected.lines += block.lines
            rejected.blank += block.blank
            rejected.crlf += block.crlf
            for reason, numbers in block.rejected.items():
                rejected.add(reason, numbers)
            yield block.rows
            progress.update(block.end - progress.n)

"""Builds a catalog from any source of rows, atomically and at most once."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import duckdb

from data_prep.catalog.files import REJECTED_FILE, SUMMARY_FILE, Catalog, SplitSummary, write_summary
from data_prep.catalog.rejected_lines import RejectedLines, write_rejected
from data_prep.catalog.split_writer import DomainRows, write_split
from data_prep.common.domains import ROPE_DOMAINS
from data_prep.common.files import atomic_folder, plain_links
from data_prep.common.process_pool import usable_cores

MEMORY_LIMIT = "3GB"  # for DuckDB; parsing and writing take about 1 GB more
MAX_REJECTED = 0.001
_MAX_THREADS = 8  # each thread sorts in its own memory, so more threads need a higher limit
_SPILL = "spill"


class CatalogRows(NamedTuple):
    """Rows of a catalog: rejected lines of files shared by all splits, split → domain → rows, and kinds of domains."""

    shared: Sequence[RejectedLines]
    splits: Mapping[str, Mapping[str, DomainRows]]
    domains: Mapping[str, str] = MappingProxyType(ROPE_DOMAINS)


def build_catalog(
    out: Path,
    source: Mapping[str, str | float],
    load: Callable[[duckdb.DuckDBPyConnection, Path], CatalogRows],
    *,
    memory_limit: str,
    report: Callable[[str], None],
) -> Catalog:
    """Builds a catalog, or returns the finished one.

    Args:
        out: Folder of the catalog. It appears when it is complete; until then, files are in `<out>.writing`.
        source: Identifies what the catalog is built from; stored in the summary.
        load: Returns the rows of all splits, given a database that may hold them and the unfinished folder.
        memory_limit: Memory limit of DuckDB, for example "3GB".
        report: Called with lines of progress.

    Raises:
        ValueError: `out` is not a catalog of this source, another process is writing it, too many lines are invalid,
            there are no products, or memory or disk do not suffice.
    """
    if catalog := _finished_catalog(out, source):
        report(f"{out} is already complete: nothing to do")
        return catalog
    with atomic_folder(out, keep_on_error=True) as folder:
        with plain_links() as link, _database(folder, link(folder), memory_limit) as con:
            shared, splits, kinds = load(con, folder)
            with _recorded(folder, shared):
                for file in shared:
                    file.check()
            if not splits:
                raise ValueError("no rows: every split is empty")
            summaries: dict[str, SplitSummary] = {}
            for split, rows in splits.items():
                # Rows may share a file.
                inputs = tuple(dict.fromkeys(source.rejected for own in rows.values() for source in own if source))
                with _recorded(folder, inputs):
                    counts = write_split(con, folder, split, rows, kinds, report)
                summaries[split] = {"domains": counts, "files": {file.file: file.summary() for file in inputs}}
        shutil.rmtree(folder / _SPILL, ignore_errors=True)
        files = {file.file: file.summary() for file in shared}
        write_summary(folder, summaries, domains=dict(kinds), source=source, files=files)
    return Catalog(out)


def _finished_catalog(out: Path, source: Mapping[str, str | float]) -> Catalog | None:
    """Returns the catalog in `out` if it was built from `source`, or None if `out` is free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    remedy = "remove it or choose another --out"
    if not (out / SUMMARY_FILE).is_file():
        raise ValueError(f"{out} exists and is not a catalog: {remedy}")
    catalog = Catalog(out)
    found = catalog.summary["source"]
    if changed := sorted(key for key in {*found, *source} if found.get(key) != source.get(key)):
        raise ValueError(f"{out} is a catalog of another source ({', '.join(changed)} differ): {remedy}")
    return catalog


@contextlib.contextmanager
def _recorded(folder: Path, files: Sequence[RejectedLines]) -> Iterator[None]:
    """Writes the rejected lines to rejected.jsonl afterwards, even after an error, whose message then names it."""
    path = folder / REJECTED_FILE
    try:
        yield
    except ValueError as error:
        write_rejected(path, files)
        raise ValueError(f"{error}\nAll lines rejected so far: {path}") from error
    write_rejected(path, files)


@contextlib.contextmanager
def _database(folder: Path, plain_name: str, memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens a database in memory that spills into `folder`, and turns its resource errors into ValueError."""
    config = {
        "memory_limit": memory_limit,
        "temp_directory": f"{plain_name}/{_SPILL}",
        "threads": min(usable_cores(), _MAX_THREADS),
        "preserve_insertion_order": False,
    }
    try:
        con = duckdb.connect(config=config)
    except duckdb.Error as error:
        raise ValueError(f"--memory_limit={memory_limit}: {error}") from error
    try:
        yield con
    except duckdb.OutOfMemoryException as error:
        raise ValueError(f"--memory_limit={memory_limit} or the disk of {folder} is too small: {error}") from error
    except duckdb.IOException as error:
        raise ValueError(f"cannot write to {folder}, or cannot read an input file: {error}") from error
    finally:
        con.close()

"""Makes a catalog from any sources: under another name until it is whole, and once."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb

from data_prep.assembly import DomainSources, write_split
from data_prep.catalog_files import REJECTED_FILE, SUMMARY_FILE, Catalog, CatalogError, write_summary
from data_prep.rejects import write_rejects
from data_prep.release import DOMAINS

MEMORY_LIMIT = "3GB"  # of DuckDB; parsing and writing beside it take about 1 GB more
MAX_REJECTED = 0.001
_MAX_THREADS = 8  # each sorts in memory of its own: with many, a limit that is enough for few is none
_SPILL, _DATABASE = "spill", "catalog.duckdb"

# Gives a split's sources, domain → rows. The connection is for those that keep their rows in the database.
SplitSources = Callable[[duckdb.DuckDBPyConnection, str], Mapping[str, DomainSources]]


def finished_catalog(out: Path, source: Mapping[str, Any]) -> Catalog | None:
    """Returns the finished catalog of this very source in `out`, None where it has to be made.

    Raises:
      CatalogError: `out` holds the catalog of another source, or something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    remedy = "remove it or choose another --out"
    if not (out / SUMMARY_FILE).is_file():
        raise CatalogError(f"{out} exists and is no catalog: {remedy}")
    catalog = Catalog(out)
    found = catalog.summary.get("source", {})
    if changed := sorted(key for key in {*found, *source} if found.get(key) != source.get(key)):
        raise CatalogError(f"{out} is a catalog of another source ({', '.join(changed)} differ): {remedy}")
    return catalog


def make(
    out: Path,
    source: Mapping[str, Any],
    splits: tuple[str, ...],
    sources: SplitSources,
    *,
    memory_limit: str = MEMORY_LIMIT,
    max_rejected: float = MAX_REJECTED,
    report: Callable[[str], None] = print,
    finish: Callable[[duckdb.DuckDBPyConnection, Path], None] = lambda con, folder: None,
) -> Catalog:
    """Makes the catalog `out`.

    Args:
      out: its folder, which appears when it is whole; a killed run leaves `OUT.writing`, which the next replaces.
      source: what it is made from, by name; goes to the summary.
      splits: names of the splits.
      sources: gives their rows.
      memory_limit: DuckDB's, e.g. "3GB".
      max_rejected: the fraction of a file's lines that may be broken.
      report: takes lines of progress.
      finish: writes further files to the folder.

    Raises:
      CatalogError: too many broken lines, no products, memory or disk that do not suffice, another process at it.
    """
    with _unfinished_folder(out) as folder:
        with _database(folder, memory_limit) as con:
            summary = {
                split: _make_split(con, folder, split, sources(con, split), max_rejected, report) for split in splits
            }
            finish(con, folder)
        for name in (_SPILL, _DATABASE, f"{_DATABASE}.wal"):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_summary(folder, summary, source=source)
        folder.replace(out)
    return Catalog(out)


def _make_split(
    con: duckdb.DuckDBPyConnection,
    folder: Path,
    split: str,
    sources: Mapping[str, DomainSources],
    max_rejected: float,
    report: Callable[[str], None],
) -> dict[str, Any]:
    rejects = tuple(dict.fromkeys(each for domain in DOMAINS for each in sources[domain].rejects))
    path = folder / REJECTED_FILE
    try:
        counts = write_split(con, folder, split, sources, max_rejected=max_rejected, report=report)
    except CatalogError as error:
        write_rejects(path, rejects)
        raise CatalogError(f"{error}\nall of them, as far as was read: {path}") from error
    write_rejects(path, rejects)
    return {"domains": counts, "files": {each.file: each.summary() for each in rejects}}


@contextlib.contextmanager
def _unfinished_folder(out: Path) -> Iterator[Path]:
    """Gives an empty folder beside `out` that is this process's alone."""
    folder = out.with_name(f"{out.name}.writing")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however that ends
        except BlockingIOError as error:
            raise CatalogError(f"another process writes {folder}: wait for it or stop it") from error
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield folder
    finally:
        os.close(lock)


@contextlib.contextmanager
def _database(folder: Path, memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Gives a database in `folder` that spills into it, and says in our words what stops it."""
    config = {
        "memory_limit": memory_limit,
        "temp_directory": str(folder / _SPILL),
        "threads": min(len(os.sched_getaffinity(0)), _MAX_THREADS),
        "preserve_insertion_order": False,
    }
    try:
        con = duckdb.connect(folder / _DATABASE, config=config)
    except duckdb.Error as error:
        raise CatalogError(f"--memory_limit={memory_limit}: {error}") from error
    try:
        yield con
    except duckdb.OutOfMemoryException as error:
        raise CatalogError(f"--memory_limit={memory_limit} or the disk of {folder} is too small: {error}") from error
    except duckdb.IOException as error:
        raise CatalogError(f"{folder} cannot be written or a file not be read: {error}") from error
    finally:
        con.close()

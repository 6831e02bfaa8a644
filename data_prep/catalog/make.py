"""Makes a catalog from any sources: under another name until it is whole, and once."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb

from data_prep.catalog.assembly import DomainSources, write_split
from data_prep.catalog.files import REJECTED_FILE, SUMMARY_FILE, Catalog, CatalogError, write_summary
from data_prep.catalog.rejects import Rejects, write_rejects
from data_prep.common.domains import DOMAINS
from data_prep.common.files import plain_links
from data_prep.common.process_pool import usable_cores

MEMORY_LIMIT = "3GB"  # of DuckDB; parsing and writing beside it take about 1 GB more
MAX_REJECTED = 0.001
_MAX_THREADS = 8  # each sorts in memory of its own: with many, a limit that is enough for few is none
_SPILL = "spill"

# Gives a split's sources, domain → rows, or None to leave it out. The connection is for rows kept in the database.
SplitSources = Callable[[duckdb.DuckDBPyConnection, str], Mapping[str, DomainSources] | None]


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
    prepare: Callable[[duckdb.DuckDBPyConnection, Path], tuple[Rejects, ...]] = lambda con, folder: (),
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
      prepare: what comes before the splits; gives what is rejected before it has a split.

    Raises:
      CatalogError: too many broken lines, no products, memory or disk that do not suffice, another process at it.
    """
    with _unfinished_folder(out) as folder:
        with plain_links() as link, _database(folder, link(folder), memory_limit) as con:
            files = _prepare(con, folder, prepare, max_rejected)
            found = {split: sources(con, split) for split in splits}
            summary = {
                split: _make_split(con, folder, split, of_split, max_rejected, report)
                for split, of_split in found.items()
                if of_split is not None
            }
            if not summary:
                raise CatalogError("no rows: every split is empty")
        shutil.rmtree(folder / _SPILL, ignore_errors=True)
        write_summary(folder, summary, source=source, files=files)
        folder.replace(out)
    return Catalog(out)


def _prepare(
    con: duckdb.DuckDBPyConnection,
    folder: Path,
    prepare: Callable[[duckdb.DuckDBPyConnection, Path], tuple[Rejects, ...]],
    max_rejected: float,
) -> dict[str, Any]:
    rejects = prepare(con, folder)
    with _kept(folder, rejects):
        for each in rejects:
            each.check(max_rejected)
    return {each.file: each.summary() for each in rejects}


def _make_split(
    con: duckdb.DuckDBPyConnection,
    folder: Path,
    split: str,
    sources: Mapping[str, DomainSources],
    max_rejected: float,
    report: Callable[[str], None],
) -> dict[str, Any]:
    rejects = tuple(dict.fromkeys(each for domain in DOMAINS for each in sources[domain].rejects))
    with _kept(folder, rejects):
        counts = write_split(con, folder, split, sources, max_rejected=max_rejected, report=report)
    return {"domains": counts, "files": {each.file: each.summary() for each in rejects}}


@contextlib.contextmanager
def _kept(folder: Path, rejects: tuple[Rejects, ...]) -> Iterator[None]:
    """Writes what is rejected meanwhile to rejected.jsonl, and in an error says so."""
    path = folder / REJECTED_FILE
    try:
        yield
    except CatalogError as error:
        write_rejects(path, rejects)
        raise CatalogError(f"{error}\nall of them, as far as was read: {path}") from error
    write_rejects(path, rejects)


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
def _database(folder: Path, plain_name: str, memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Gives a database in memory that spills into `folder`, and says in our words what stops it.

    Args:
      folder: of the unfinished catalog.
      plain_name: another name of it, for DuckDB, see `plain_links`.
      memory_limit: DuckDB's.
    """
    config = {
        "memory_limit": memory_limit,
        "temp_directory": f"{plain_name}/{_SPILL}",
        "threads": min(usable_cores(), _MAX_THREADS),
        "preserve_insertion_order": False,
    }
    try:
        con = duckdb.connect(config=config)
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

"""Makes a catalog from a release's text files."""

import codecs
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from data_prep.catalog import lines
from data_prep.catalog import make as making
from data_prep.catalog import text_blocks as blocks
from data_prep.catalog.assembly import DomainSources, Source
from data_prep.catalog.files import Catalog, CatalogError
from data_prep.catalog.rejects import Rejects
from data_prep.catalog.release import PREFIXES, DomainFiles, release_files
from data_prep.common.domains import DOMAINS

SECONDS_BETWEEN_LINES = 5.0


def make_catalog(
    release: Path,
    out: Path,
    *,
    splits: tuple[str, ...] = tuple(PREFIXES),
    prefixes: Mapping[str, str] | None = None,
    memory_limit: str = making.MEMORY_LIMIT,
    max_rejected: float = making.MAX_REJECTED,
    report: Callable[[str], None] = print,
) -> Catalog:
    """Makes the catalog of a release, or returns the finished one.

    Args:
      release: folder with the text files.
      out: folder of the catalog.
      splits: the splits to take.
      prefixes: split → prefix of its file names, where not that of `release.PREFIXES`.
      memory_limit: DuckDB's, e.g. "3GB".
      max_rejected: the fraction of a file's lines that may be broken.
      report: takes lines of progress.

    Raises:
      ReleaseError: a missing file or an unknown split.
      CatalogError: see `making`.
    """
    if not splits or len(set(splits)) < len(splits):
        raise CatalogError(f"splits {list(splits)}: wanted at least one, and each once")
    files = {split: release_files(release, split, prefix=(prefixes or {}).get(split)) for split in splits}
    source = _digests(files)
    if catalog := making.finished_catalog(out, source):
        report(f"{out} is the finished catalog of {release}: nothing to do")
        return catalog

    def sources(_, split: str) -> dict[str, DomainSources]:
        return {domain: _sources(split, domain, files[split][domain], report) for domain in DOMAINS}

    return making.make(
        out, source, splits, sources, memory_limit=memory_limit, max_rejected=max_rejected, report=report
    )


def _digests(files: Mapping[str, Mapping[str, DomainFiles]]) -> dict[str, str]:
    """Returns "split domain part" → SHA-256 of the file: a folder with the same files elsewhere has the same."""
    paths = {
        f"{split} {domain} {part}": path
        for split, domains in files.items()
        for domain in DOMAINS
        for part, path in vars(domains[domain]).items()
    }
    with ThreadPoolExecutor(2) as pool:  # hashing leaves the interpreter's lock
        return dict(zip(paths, pool.map(_digest, paths.values()), strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sources(split: str, domain: str, files: DomainFiles, report: Callable[[str], None]) -> DomainSources:
    frames = lines.PAGE_FRAMES if domain == "page" else lines.CLIP_FRAMES
    return DomainSources(
        pairs=_source(split, files.pairs, lines.PAIRS, report),
        texts=_source(split, files.texts, lines.TEXTS, report),
        frames=_source(split, files.frames, frames, report),
    )


def _source(split: str, path: Path, layout: lines.Layout, report: Callable[[str], None]) -> Source:
    with path.open("rb") as file:
        bom = file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
    rejects = Rejects(split, path.name, partial(blocks.read_lines, path), bom=bom)

    def feed(con: duckdb.DuckDBPyConnection) -> None:
        batches = _read(path, layout, rejects, report)
        con.register("source", pa.RecordBatchReader.from_batches(blocks.schema(layout), batches))

    return Source(feed, rejects)


def _read(
    path: Path, layout: lines.Layout, rejects: Rejects, report: Callable[[str], None]
) -> Iterator[pa.RecordBatch]:
    """Yields a file's rows, notes its other lines, and says now and then how far it is."""
    size, start = path.stat().st_size, time.monotonic()
    last = start
    for parsed in blocks.read_rows(path, layout):
        rejects.lines += parsed.lines
        rejects.blank += parsed.blank
        rejects.crlf += parsed.crlf
        for reject in parsed.rejects:
            rejects.add(*reject)
        yield parsed.rows
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            last, rate = now, rejects.lines / (now - start)
            report(f"{path.name}: {rejects.lines:,} lines, {parsed.end / size:.0%}, {rate:,.0f} lines/s")

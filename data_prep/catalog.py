"""Makes a catalog from a release's text files: parsed, checked, joined and in row order, at any size.

    python -m data_prep.catalog --release=DIR --out=DIR [--splits=train,test] [--memory_limit=3GB] [--max_rejected=0.01]

Broken lines are left out, counted by file and reason, and shown in OUT/rejected.jsonl. Killed, the same command starts
over; over a finished catalog of the same files it says so and does nothing.
"""

import codecs
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
from absl import app, flags

from data_prep import blocks, lines, making
from data_prep.assembly import DomainSources, Source
from data_prep.catalog_files import Catalog, CatalogError
from data_prep.catalog_summary import format_summary
from data_prep.rejects import Rejects
from data_prep.release import DOMAINS, PREFIXES, DomainFiles, ReleaseError, release_files

FLAGS = flags.FLAGS
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


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("release", None, "Folder with the text files.", required=True)
    flags.DEFINE_string("out", None, "Folder of the catalog.", required=True)
    flags.DEFINE_list("splits", list(PREFIXES), "Splits to take.")
    for split, prefix in PREFIXES.items():
        flags.DEFINE_string(f"{split}_prefix", prefix, f"What the file names of split {split} start with.")
    flags.DEFINE_string("memory_limit", making.MEMORY_LIMIT, "Memory for sorting; about 1 GB more is used beside it.")
    flags.DEFINE_float("max_rejected", making.MAX_REJECTED, "Fraction of a file's lines that may be broken.", 0, 1)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        catalog = make_catalog(
            Path(FLAGS.release),
            Path(FLAGS.out),
            splits=tuple(FLAGS.splits),
            prefixes={split: FLAGS[f"{split}_prefix"].value for split in PREFIXES},
            memory_limit=FLAGS.memory_limit,
            max_rejected=FLAGS.max_rejected,
            report=partial(print, flush=True),
        )
    except (ReleaseError, CatalogError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(format_summary(catalog.summary))
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main)

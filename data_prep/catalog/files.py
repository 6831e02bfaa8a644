"""Files of a catalog.

    CATALOG/summary.json    version, fingerprint and counts; written last: a folder without it is unfinished
    CATALOG/rejected.jsonl  lines that were left out
    CATALOG/<split>/<domain>.parquet, product.parquet

Row i of a domain's file is item i of the domain, ordered by (smallest product id, item id).
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.common.domains import ROPE_DOMAINS, check_domains
from data_prep.common.files import atomic_write, file_sha256, read_json
from data_prep.common.parquet import open_parquet, read_range
from data_prep.common.payload import OWN_ITEM, parse_payload

VERSION = 1  # raise when the files change in form or meaning
SUMMARY_FILE = "summary.json"
REJECTED_FILE = "rejected.jsonl"
GROUP_ROWS = 8192  # rows per row group: decoded to read a few rows, and held in memory at once
_READ_ROWS = 1024

ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # "" if missing
        pa.field("product_ids", pa.list_(pa.int64()), nullable=False),  # ascending, at least one
        pa.field("frame_names", pa.list_(pa.string()), nullable=False),  # in time order; see `Frame`
        pa.field("frame_times", pa.list_(pa.int64()), nullable=False),
    ]
)
# Of tables with ids or columns of their own: a JSON object, see `data_prep.common.payload`.
PAYLOAD_SCHEMA = ITEM_SCHEMA.append(pa.field("payload", pa.string(), nullable=False))
# Products, pages, videos and lives in each split of ROPE, as counted by its authors.
ROPE = {
    "train": {"product": 187_431, "page": 3_025_236, "video": 5_837_716, "live": 3_464_116},
    "test": {"product": 2_527, "page": 31_388, "video": 29_810, "live": 30_981},
}
ROPE_TOLERANCE = 0.02  # counts that differ by more are not compared with ROPE's

Counts = Mapping[str, Mapping[str, int]]  # domain → its counts, and "product" → {"products": …}


class FileSummary(TypedDict):
    """Numbers of lines in an input file: invalid ones are `broken`, all rejected ones are in `reasons`."""

    lines: int
    blank: int
    crlf: int
    bom: bool
    broken: int
    reasons: dict[str, int]


class SplitSummary(TypedDict):
    """Counts of a split and of its input files."""

    domains: Counts
    files: dict[str, FileSummary]


class Summary(TypedDict):
    """Contents of summary.json: `source` identifies the input, `files` are the input files shared by all splits."""

    version: int
    fingerprint: str
    domains: Mapping[str, str]  # domain → kind; absent from catalogs of releases written by earlier versions
    source: Mapping[str, str | float]
    files: dict[str, FileSummary]
    splits: dict[str, SplitSummary]


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """An image of an item: `time` (frame number or ms) orders it, `name` is its file name.

    Images of an image domain at the same time, such as all pages of a release at 0, keep the order of their lines;
    frames of a clip at the same time are ordered by name.
    """

    time: int
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """An item of a domain. `text` and `payload` are "" if missing; products and frames are sorted."""

    item_id: int
    text: str
    product_ids: tuple[int, ...]
    frames: tuple[Frame, ...]
    payload: str = ""

    @property
    def own_id(self) -> int | str:
        """The item's id in its table, or in its release."""
        return parse_payload(self.payload).get(OWN_ITEM, self.item_id)


@dataclasses.dataclass(frozen=True)
class Product:
    """A product and the rows of its items in each domain, ascending."""

    product_id: int
    rows: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Catalog:
    """A catalog. All members but `path` raise ValueError if it is missing, unfinished or of another version."""

    folder: Path

    @functools.cached_property
    def summary(self) -> Summary:
        """Contents of summary.json."""
        path = self.folder / SUMMARY_FILE
        if not path.is_file():
            raise ValueError(
                f"no {SUMMARY_FILE} in {path.parent.absolute()}: it is not a catalog, or an unfinished one; "
                "build it with ./run.sh catalog or ./run.sh table"
            )
        remedy = "remove the folder and build it again"
        summary = read_json(path, keys=("version", "fingerprint", "splits"), remedy=remedy)
        if summary["version"] != VERSION:
            raise ValueError(f"{path} has version {summary['version']}, not {VERSION}: {remedy}")
        return summary

    @property
    def fingerprint(self) -> str:
        """Hex digest of the content."""
        return self.summary["fingerprint"]

    @functools.cached_property
    def domains(self) -> dict[str, str]:
        """Domains and their kinds."""
        return check_domains(self.summary.get("domains", ROPE_DOMAINS), self.folder / SUMMARY_FILE)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.summary["splits"])

    @functools.cached_property
    def has_payload(self) -> bool:
        """Whether its items have a payload."""
        with self._open(self.splits[0], next(iter(self.domains))) as file:
            return "payload" in file.schema_arrow.names

    def path(self, split: str, name: str) -> Path:
        """Returns the path of a domain's items, or of the products if `name` is "product"."""
        return self.folder / split / f"{name}.parquet"

    def count(self, split: str, name: str) -> int:
        """Returns the number of a domain's items, or of products if `name` is "product"."""
        with self._open(split, name) as file:
            return file.metadata.num_rows

    def items(self, split: str, domain: str, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """Yields the items of rows [start, stop), by default to the end, with one row group in memory at a time."""
        with self._open(split, domain) as file:
            for batch in read_range(file, start, stop, batch_rows=_READ_ROWS):
                columns = [batch.column(name).to_pylist() for name in ITEM_SCHEMA.names]
                payloads = batch.column("payload").to_pylist() if self.has_payload else [""] * batch.num_rows
                for item_id, text, products, names, times, payload in zip(*columns, payloads, strict=True):
                    yield Item(item_id, text, tuple(products), tuple(map(Frame, times, names)), payload)

    def frame_counts(self, split: str, domain: str) -> Iterator[int]:
        """Yields the number of frames of each item of a domain."""
        with self._open(split, domain) as file:
            for batch in file.iter_batches(columns=["frame_times"]):  # as many as names, but faster to read
                yield from batch.column(0).value_lengths().to_pylist()

    def products(self, split: str) -> Iterator[Product]:
        """Yields the products in the order of their ids."""
        with self._open(split, "product") as file:
            for batch in file.iter_batches(_READ_ROWS):
                columns = [batch.column(name).to_pylist() for name in product_schema(self.domains).names]
                for product_id, *rows in zip(*columns, strict=True):
                    yield Product(product_id, dict(zip(self.domains, map(tuple, rows), strict=True)))

    def _open(self, split: str, name: str) -> AbstractContextManager[pq.ParquetFile]:
        if split not in self.splits:
            raise ValueError(f"{self.folder} has no split {split!r}: it has {', '.join(self.splits)}")
        return open_parquet(self.path(split, name))


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes a Parquet file atomically, one row group per record batch. The same batches give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def product_schema(domains: Iterable[str]) -> pa.Schema:
    """Returns the columns of product.parquet: an id, and the rows of the product's items in each domain."""
    rows = (pa.field(f"{domain}_rows", pa.list_(pa.int64()), nullable=False) for domain in domains)
    return pa.schema([pa.field("product_id", pa.int64(), nullable=False), *rows])


def write_summary(
    folder: Path,
    splits: Mapping[str, SplitSummary],
    *,
    domains: Mapping[str, str],
    source: Mapping[str, str | float],
    files: Mapping[str, FileSummary],
) -> None:
    """Writes summary.json, which finishes the catalog in `folder`; see `Summary`."""
    catalog = Catalog(folder)
    digest = hashlib.sha256(f"catalog {VERSION}\n".encode())
    if domains != ROPE_DOMAINS:
        digest.update(f"domains {json.dumps(domains)}\n".encode())
    for split in splits:
        for name in (*domains, "product"):
            digest.update(f"{split} {name} {file_sha256(catalog.path(split, name))}\n".encode())
    summary = {"version": VERSION, "fingerprint": digest.hexdigest()}
    summary |= {"domains": domains, "source": source, "files": files, "splits": splits}
    with atomic_write(folder / SUMMARY_FILE, "w", durable=True) as file:
        json.dump(summary, file, ensure_ascii=False, indent=2)
        file.write("\n")


def format_summary(summary: Summary) -> str:
    """Returns a table with a line for each domain, followed by notes on the input files."""
    lines = [
        f"{'split':<8}{'domain':<9}{'items':>12}{'with text':>12}{'frames':>14}{'no frames':>11}{'2+ products':>13}"
    ]
    lines += _notes(summary["files"])
    for split, content in summary["splits"].items():
        domains = [name for name in content["domains"] if name != "product"]
        for domain in domains:
            counts = content["domains"][domain]
            lines.append(
                f"{split:<8}{domain:<9}{counts['items']:>12,}{counts['texts']:>12,}{counts['frames']:>14,}"
                f"{counts['items_without_frames']:>11,}{counts['items_of_several_products']:>13,}"
            )
        lines.append(f"{split:<8}{'product':<9}{content['domains']['product']['products']:>12,}")
        if empty := [domain for domain in domains if not content["domains"][domain]["items"]]:
            lines.append(f"{split:<8}has no {' and no '.join(empty)} items, so it cannot be built")
        lines += [f"{split:<8}{note}" for note in _notes(content["files"])]
        if comparison := compare_with_rope(split, content["domains"]):
            lines.append(f"{split:<8}{comparison}")
    return "\n".join(lines)


def _notes(files: Mapping[str, FileSummary]) -> list[str]:
    """Returns a line for each file that has anything unusual."""
    lines = []
    for name, file in files.items():
        notes = [f"{count:,} {reason}" for reason, count in file["reasons"].items()]
        notes += [f"{file['blank']:,} blank"] if file["blank"] else []
        notes += [f"{file['crlf']:,} with CRLF"] if file["crlf"] else []
        notes += ["a byte order mark"] if file["bom"] else []
        if notes:
            lines.append(f"{name}: of {file['lines']:,} lines {', '.join(notes)}")
    return lines


def compare_with_rope(split: str, counts: Counts) -> str:
    """Returns a comparison with the counts of ROPE's split, or "" if they are not close."""
    expected = ROPE.get(split, {})
    if counts.keys() != expected.keys():
        return ""
    found = {name: counts[name]["products" if name == "product" else "items"] for name in expected}
    if any(abs(found[name] - count) > ROPE_TOLERANCE * count for name, count in expected.items()):
        return ""
    differing = [f"{found[name]:,} {name}s, not {count:,}" for name, count in expected.items() if found[name] != count]
    if differing:
        return f"like ROPE's {split} split, but {'; '.join(differing)}"
    return f"the counts of ROPE's {split} split"

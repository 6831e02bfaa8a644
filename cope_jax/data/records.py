"""Random access to the array records of one or more splits: items by domain and row, products by number.

Items that cannot be read, because the record or an image is invalid, are errors or counted (`InvalidItems`).
"""

import hashlib
import resource
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from data_prep.common.domains import find_data_set, read_domains
from data_prep.common.payload import CLEAN_TEXT, OWN_ITEM, OWN_PRODUCTS, parse_payload
from data_prep.records.schema import find_record_files, open_files, parse_example

# Raised for an invalid record: by array_record (wrong hash), for a feature without values, by parsing and decoding.
INVALID = (RuntimeError, IndexError, ValueError)
SAMPLE = 1 << 16  # bytes read from both ends of a file for its fingerprint
PRINTED = 20  # number of invalid items that are printed; the metrics count all
KEPT = 5  # number of messages about invalid items that are kept
OTHER_FILES = 500  # further files that a process has open: libraries, logs, checkpoints, sockets


class InvalidItemError(ValueError):
    """A record or image cannot be read. (Invalid settings raise other ValueErrors.)"""


class InvalidItems:
    """Counts invalid items, prints the first and keeps the last few. Thread-safe."""

    def __init__(self) -> None:
        self.count = 0
        self.last: deque[str] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def add(self, error: InvalidItemError) -> None:
        """Records an item that was skipped."""
        with self._lock:
            self.count += 1
            self.last.append(str(error))
            if self.count <= PRINTED:
                more = "; further ones are only counted in the metrics" if self.count == PRINTED else ""
                print(f"\nskipped: {error}{more}", flush=True)


@dataclass(frozen=True)
class Item:
    """An item of a domain."""

    item_id: int  # unique within the domain
    text: str  # "" if it has none
    product_ids: tuple[int, ...]  # ascending
    frames: tuple[bytes, ...]  # encoded images (JPEG, PNG, …) in time order
    payload: str = ""  # JSON, see `data_prep.common.payload`

    @property
    def columns(self) -> dict[str, Any]:
        """The payload: ids as in the user's table, and its other columns."""
        return parse_payload(self.payload)

    @property
    def clean_text(self) -> str:
        """The text of the column text_clean, or `text` if the item has none."""
        return self.columns.get(CLEAN_TEXT) or self.text

    @property
    def own_id(self) -> int | str:
        """The id in the user's table."""
        return self.columns.get(OWN_ITEM, self.item_id)

    @property
    def own_products(self) -> tuple[int | str, ...]:
        """The ids of the products in the user's table."""
        return tuple(self.columns.get(OWN_PRODUCTS, self.product_ids))


@dataclass(frozen=True)
class Product:
    """A product and the rows of its items in each domain, i64[n], empty for domains without items."""

    product_id: int
    rows: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RecordFiles:
    """Serialized records of several files."""

    source: ArrayRecordDataSource  # the records by row
    files: Mapping[Path, int]  # number of records of each file, in row order

    def __len__(self) -> int:
        return len(self.source)

    def place(self, row: int) -> str:
        """Returns "record 3 of /data/rope/page/1.0.0/rope-train.array_record-00001-of-00016"."""
        for path, count in self.files.items():
            if row < count:
                return f"record {row} of {path}"
            row -= count
        raise IndexError(f"row {row} is beyond the last record")


@dataclass(frozen=True)
class ItemRecords(RecordFiles):
    """The items of a domain. `records[row]` reads one, or raises InvalidItemError, naming the file."""

    domain: str
    kind: str  # of the domain: "image" or "clip"

    def __getitem__(self, row: int) -> Item:
        try:
            example = parse_example(self.source[row])
            return Item(
                item_id=example.integers("item_id")[0],
                text=example.byte_strings("text")[0].decode("utf-8"),
                product_ids=tuple(sorted(example.integers("product_ids"))),
                frames=tuple(example.byte_strings("frames")),
                payload=b"".join(example.byte_strings("payload")).decode("utf-8"),
            )
        except INVALID as error:
            raise InvalidItemError(f"{self.place(row)} is invalid: {error}") from error


@dataclass(frozen=True)
class ProductRecords(RecordFiles):
    """The products. `records[number]` reads one, or raises InvalidItemError, naming the file."""

    starts: Sequence[Mapping[str, int]]  # for each split, the products and items of each domain in those before it

    def __getitem__(self, index: int) -> Product:
        start = [start for start in self.starts if start["product"] <= index][-1]
        try:
            example = parse_example(self.source[index])
            rows = {
                domain: first + np.array(example.integers(f"{domain}_rows"), np.int64)
                for domain, first in start.items()
                if domain != "product"
            }
            return Product(product_id=example.integers("product_id")[0], rows=rows)
        except INVALID as error:
            raise InvalidItemError(f"{self.place(index)} is invalid: {error}") from error

    def ids(self, *, chunk: int = 4096) -> np.ndarray:
        """Returns the ids of all products, i64[P], in the order of the records.

        Reading `chunk` records at once takes two seconds for 187,431 products instead of a minute.
        """
        ids = np.zeros(len(self), np.int64)
        for start in range(0, len(self), chunk):
            indices = range(start, min(start + chunk, len(self)))
            try:
                records = self.source.__getitems__(indices)
                ids[indices] = [parse_example(record).integers("product_id")[0] for record in records]
            except INVALID:
                ids[indices] = [self[index].product_id for index in indices]  # raises for the invalid record
        return ids


@dataclass(frozen=True)
class Records:
    """The data sets of one or more splits, concatenated."""

    items: Mapping[str, ItemRecords]
    products: ProductRecords


def open_records(data_dir: str | Path, split: str) -> Records:
    """Opens the newest versions of the domains and products of a data set, see `find_data_set`.

    `split` names one or, as TFDS writes them, several: "train+test".

    Raises:
        FileNotFoundError: Data sets are missing; the message lists them and the command that builds them.
        ValueError: Data sets lack a split, or they have more files than this process may open.
    """
    parts = _find_files(data_dir, split)
    files = {config: _join(own) for config, own in parts.items()}
    _allow_open_files(sum(map(len, files.values())), data_dir)
    sources = {config: open_files(own) for config, own in files.items()}
    starts = [dict.fromkeys(parts, 0)]
    for number in range(split.count("+")):
        starts.append({config: starts[-1][config] + sum(own[number].values()) for config, own in parts.items()})
    return Records(
        items={
            domain: ItemRecords(sources[domain], files[domain], domain, kind)
            for domain, kind in read_domains(find_data_set(Path(data_dir))).items()
        },
        products=ProductRecords(sources["product"], files["product"], starts),
    )


def fingerprint(data_dir: str | Path, split: str) -> str:
    """Returns 16 hexadecimal digits that identify the records of a split, wherever they are stored.

    They depend on the name, size, beginning and end of each file: reading whole files would take hours for large data.
    """
    digest = hashlib.sha256()
    for config, parts in _find_files(data_dir, split).items():
        for path in _join(parts):
            add_file(digest, path, config)
    return digest.hexdigest()[:16]


def add_file(digest: "hashlib._Hash", path: Path, kind: str) -> None:
    """Updates a digest with a file's kind, name, size, beginning and end."""
    size = path.stat().st_size
    digest.update(f"{kind} {path.name} {size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(SAMPLE))
        file.seek(max(size - SAMPLE, 0))
        digest.update(file.read(SAMPLE))


def sample_texts(
    records: Records, *, limit: int, domains: Sequence[str] | None = None, clean: bool = False
) -> list[str]:
    """Returns at most `limit` texts per domain, by default of all domains, from evenly spaced rows.

    Items that cannot be read or have no text are skipped. The result is deterministic: for 10 rows and a limit of 4,
    rows 0, 2, 5 and 7 are read. With `clean`, these are the clean texts.
    """
    texts = []
    for domain in domains or records.items:
        items = records.items[domain]
        count = min(limit, len(items))
        for i in range(count):
            with suppress(InvalidItemError):
                item = items[i * len(items) // count]
                texts.append(item.clean_text if clean else item.text)
    return [text for text in texts if text]


def _find_files(data_dir: str | Path, split: str) -> dict[str, list[dict[Path, int]]]:
    """Returns each domain and product → for each part of the split, its files and their numbers of records.

    Raises as `open_records` does.
    """
    found, names = find_record_files(Path(data_dir)), split.split("+")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"split {split!r} names {', '.join(twice)} more than once; name each split once")
    if lacking := [
        f"{config} (has {', '.join(sorted(own)) or 'none'})" for config, own in found.items() if set(names) - set(own)
    ]:
        raise ValueError(
            f"no split {split!r} in {data_dir} for {', '.join(lacking)}; choose another, or several as in train+test, "
            "or build all that you need into another data_dir with `./run.sh build … --splits=train,test`"
        )
    return {config: [own[name] for name in names] for config, own in found.items()}


def _join(parts: Sequence[Mapping[Path, int]]) -> dict[Path, int]:
    return {path: count for part in parts for path, count in part.items()}


def _allow_open_files(count: int, data_dir: str | Path) -> None:
    """Raises the limit of open files for `count` record files, which stay open; for twice as many if possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if allowed < count + OTHER_FILES:
        raise ValueError(
            f"{data_dir} has {count} files, which stay open, but this process may open only {hard}; allow "
            f"{wanted} (`ulimit -Hn`, or LimitNOFILE in systemd)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))

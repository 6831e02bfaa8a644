"""Reads files of records whole and says what is wrong in which record."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from data_prep.common.domains import DOMAINS
from data_prep.images import decoding as images
from data_prep.records import schema as records
from data_prep.records import shards

NO_LINKS = np.zeros((0, 2), np.int64)


@dataclasses.dataclass(frozen=True)
class Check:
    """What a file holds and what is wrong with it.

    Attributes:
      rows, frames: how many could be read.
      damages: a line each.
      links: i64[n, 2] of row and product id: under "item" a record's number in this file and a product of it,
        under a domain the row of an item and the product that points at it.
    """

    rows: int
    frames: int
    damages: list[str]
    links: Mapping[str, np.ndarray]


def check_items(path: Path) -> Check:
    """Reads a shard of items and compares it with the report of the one who wrote it."""
    damages: list[str] = []
    report = _read_report(path, damages)
    tally, frames, links = records.Tally(), 0, []
    for number, record in _records(path, damages):
        tally.add(record)
        item = _features(record, damages, number)
        damages += [f"record {number}: {fault}" for fault in _item_faults(item)]
        frames += len(_bytes(item, "frames"))
        links += [(number, product) for product in _integers(item, "product_ids")]
    if report is not None and (tally.count, frames) != (report.rows, report.frames):
        damages.append(f"{tally.count} records with {frames} frames, wanted {report.rows} with {report.frames}")
    elif report is not None and tally.crc32 != report.crc32:
        damages.append("other records than were written: the checksum differs")
    return Check(tally.count, frames, damages, {"item": _array(links)})


def check_products(path: Path) -> Check:
    """Reads a file of products."""
    damages: list[str] = []
    links: dict[str, list[tuple[int, int]]] = {domain: [] for domain in DOMAINS}
    rows, last = 0, -1
    for number, record in _records(path, damages):
        rows += 1
        product = _features(record, damages, number)
        ids = _integers(product, "product_id")
        if len(ids) != 1 or ids[0] <= last:
            damages.append(f"record {number}: product id {ids}, wanted one above {last}")
            continue
        last = ids[0]
        for domain in DOMAINS:
            links[domain] += [(row, last) for row in _integers(product, f"{domain}_rows")]
    return Check(rows, 0, damages, {domain: _array(pairs) for domain, pairs in links.items()})


def unmatched(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of each i64[n, 2] that the other lacks; none occurs twice in one of them."""
    both = np.concatenate([first, second])
    order = np.lexsort((both[:, 1], both[:, 0]))
    same = (both[order[1:]] == both[order[:-1]]).all(axis=-1)
    alone = order[~(np.append(same, False) | np.append(False, same))] if len(order) else order
    alone.sort()
    return both[alone[alone < len(first)]], both[alone[alone >= len(first)]]


def _read_report(path: Path, damages: list[str]) -> shards.ShardReport | None:
    try:
        return shards.read_report(shards.report_path(path))
    except (FileNotFoundError, shards.ReportError) as error:
        damages.append(f"its report cannot be read: {error}")
        return None


def _records(path: Path, damages: list[str]) -> Iterator[tuple[int, bytes]]:
    """Yields number and bytes of the records that can be read; array_record keeps a checksum of each."""
    if not path.exists():
        damages.append("not found")
        return
    reader = ArrayRecordReader(str(path))
    for number in range(reader.num_records()):
        try:
            yield number, reader.read([number])[0]
        except RuntimeError as error:
            damages.append(f"record {number}: cannot be read: {error}")
    try:
        reader.close()
    except RuntimeError as error:  # a file that could not be opened says so only here
        damages.append(f"cannot be read: {error}")


def _features(record: bytes, damages: list[str], number: int) -> Mapping:
    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        damages.append(f"record {number}: does not parse: {error}")
        return {}


def _item_faults(item: Mapping) -> Iterator[str]:
    frames, times, products = _bytes(item, "frames"), _integers(item, "frame_times"), _integers(item, "product_ids")
    if len(_integers(item, "item_id")) != 1:
        yield "no item id"
    try:
        b"".join(_bytes(item, "text")).decode("utf-8")
    except UnicodeDecodeError as error:
        yield f"text is not UTF-8: {error}"
    if not products or sorted(set(products)) != products:
        yield f"product ids {products}, wanted at least one, ascending"
    if not frames or len(frames) != len(times) or sorted(times) != times:
        yield f"{len(frames)} frames at times {times}, wanted as many as frames, ascending"
    for index, data in enumerate(frames):
        if fault := images.find_fault(data):
            yield f"frame {index}: {fault.value}"


def _bytes(features: Mapping, name: str) -> Sequence[bytes]:
    return features[name].bytes_list.value if name in features else ()


def _integers(features: Mapping, name: str) -> list[int]:
    return list(features[name].int64_list.value) if name in features else []


def _array(links: list[tuple[int, int]]) -> np.ndarray:
    return np.array(links, np.int64) if links else NO_LINKS

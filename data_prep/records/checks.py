"""Reads whole files of records and finds the problems in them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_prep.images import decoding as images
from data_prep.records import schema, shards
from data_prep.records.schema import Example, parse_example


@dataclasses.dataclass(frozen=True)
class Check:
    """The content of a file that could be read, and its problems, one line each.

    `links` are pairs of a row and a product id, i64[n, 2]. Under "item": a record of this file and one of its products.
    Under a domain: a row of that domain and the product that lists it.
    """

    rows: int
    frames: int
    problems: list[str]
    links: Mapping[str, np.ndarray]


def check_items(path: Path) -> Check:
    """Reads a shard of items and compares it with its report."""
    problems: list[str] = []
    report = _read_report(path, problems)
    tally, frames, links = schema.Tally(), 0, []
    for number, record, item in _records(path, problems):
        tally.add(record)
        if item is None:
            continue
        problems += [f"record {number}: {problem}" for problem in _item_problems(item)]
        frames += len(item.byte_strings("frames"))
        links += [(number, product) for product in item.integers("product_ids")]
    if report is not None and (tally.count, frames) != (report.rows, report.frames):
        problems.append(f"{tally.count} records with {frames} frames, expected {report.rows} with {report.frames}")
    elif report is not None and tally.crc32 != report.crc32:
        problems.append("the records changed after they were written: the checksum differs")
    return Check(tally.count, frames, problems, {"item": as_links(links)})


def check_products(path: Path, domains: Sequence[str]) -> Check:
    """Reads a file of products."""
    problems: list[str] = []
    links: dict[str, list[tuple[int, int]]] = {domain: [] for domain in domains}
    rows, last = 0, -1
    for number, _, product in _records(path, problems):
        rows += 1
        if product is None:
            continue
        ids = product.integers("product_id")
        if len(ids) != 1 or ids[0] <= last:
            problems.append(f"record {number}: product id is {ids}, expected one above {last}")
            continue
        last = ids[0]
        for domain in domains:
            links[domain] += [(row, last) for row in product.integers(f"{domain}_rows")]
    return Check(rows, 0, problems, {domain: as_links(pairs) for domain, pairs in links.items()})


def as_links(pairs: list[tuple[int, int]]) -> np.ndarray:
    """Returns pairs as i64[n, 2], also if there are none."""
    return np.array(pairs, np.int64).reshape(-1, 2)


def differences(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of each i64[n, 2] that the other lacks; no row may occur twice in one of them."""
    both = np.concatenate([first, second])
    order = np.lexsort((both[:, 1], both[:, 0]))
    same = (both[order[1:]] == both[order[:-1]]).all(axis=-1)
    alone = order[~(np.append(same, False) | np.append(False, same))] if len(order) else order
    alone.sort()
    return both[alone[alone < len(first)]], both[alone[alone >= len(first)]]


def _read_report(path: Path, problems: list[str]) -> shards.ShardReport | None:
    try:
        return shards.read_report(shards.report_path(path))
    except (FileNotFoundError, ValueError) as error:
        problems.append(f"its report cannot be read: {error}")
        return None


def _records(path: Path, problems: list[str]) -> Iterator[tuple[int, bytes, Example | None]]:
    """Yields number, bytes and content of the records that can be read; array_record stores a checksum of each."""
    if not path.exists():
        problems.append("not found")
        return
    reader = ArrayRecordReader(str(path))
    for number in range(reader.num_records()):
        record, example = None, None
        try:
            record = reader.read([number])[0]
            example = parse_example(record)
        except RuntimeError as error:
            problems.append(f"record {number}: cannot be read: {error}")
        except ValueError as error:
            problems.append(f"record {number}: {error}")
        if record is not None:
            yield number, record, example
    try:
        reader.close()
    except RuntimeError as error:  # raised only here if the file could not be opened
        problems.append(f"cannot be read: {error}")


def _item_problems(item: Example) -> Iterator[str]:
    frames, times = item.byte_strings("frames"), item.integers("frame_times")
    products = item.integers("product_ids")
    if len(item.integers("item_id")) != 1:
        yield "no item id"
    try:
        b"".join(item.byte_strings("text")).decode("utf-8")
    except UnicodeDecodeError as error:
        yield f"text is not UTF-8: {error}"
    if not products or sorted(set(products)) != products:
        yield f"product ids are {products}, expected at least one, ascending"
    if not frames or len(frames) != len(times) or sorted(times) != times:
        yield f"{len(frames)} frames at times {times}, expected one ascending time per frame"
    for index, data in enumerate(frames):
        if problem := images.find_problem(data):
            yield f"frame {index}: {problem.value}"

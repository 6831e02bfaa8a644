"""Which shards there are to fetch: a walk over the catalog that never holds more than one shard's items."""

import itertools
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.catalog.files import Catalog, Item
from data_prep.download import ledger
from data_prep.download.shard import Shard, journal_path, ledger_path, names_of, rows_to_retry, tar_path


def count_frames(catalog: Catalog, split: str, domain: str) -> int:
    """Returns the number of frames of a domain."""
    with pq.ParquetFile(catalog.path(split, domain)) as file:  # times, for they are quicker to read than names
        return sum(len(batch.column(0).flatten()) for batch in file.iter_batches(columns=["frame_times"]))


def cut(items: Iterator[Item], frames: int) -> list[Item]:
    """Takes the items of the next shard: whole ones, until they have `frames` frames or are as many.

    Items of 2, 2, 1 and 5 frames with frames=4: two items, then two. The end of the items ends a shard too.
    """
    taken, filled = [], 0
    for item in items:
        taken.append(item)
        filled += len(item.frames)
        if filled >= frames or len(taken) >= frames:
            break
    return taken


def unfinished_shards(
    catalog: Catalog,
    folder: Path,
    split: str,
    domain: str,
    *,
    shard_frames: int,
    url_prefix: str,
    retry: Set[str],
    refused: Set[str],
    on_skip: Callable[[int], None],
) -> Iterator[Shard]:
    """Yields the shards of a domain that have something to fetch or to write, in row order.

    Args:
      catalog: what to fetch.
      folder: where the shards go.
      split: of the catalog.
      domain: of the split.
      shard_frames: frames a shard; the last item of one may exceed it.
      url_prefix: for the URLs.
      retry: failures to try again where an earlier run met them.
      refused: sha256 of images to ask for again.
      on_skip: called with the number of frames of each shard that has nothing to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, start = catalog.count(split, domain), 0
    items, items_row = iter(()), -1  # an iterator over the catalog, and the row of its next item
    for number in itertools.count():
        if start == count:
            return
        path = ledger_path(folder, number)
        if not path.exists():
            if items_row != start:
                items = catalog.items(split, domain, start)
            taken = cut(items, shard_frames)
            asked = range(len(names_of(taken)))
            yield Shard(folder, number, start=start, items=taken, rows={}, asked=asked, url_prefix=url_prefix)
            start = items_row = start + len(taken)
            continue
        footer = ledger.read_footer(path)
        begun = journal_path(folder, number).exists()  # a retry that was killed
        lost = _has_lost_images(tar_path(folder, number), path, begun)
        rows = dict(enumerate(ledger.read_rows(path))) if not lost and (retry or refused or begun) else {}
        asked = rows_to_retry(rows, retry, refused)
        if asked or begun or lost:
            again = list(catalog.items(split, domain, start, footer.stop))
            asked = range(len(names_of(again))) if lost else asked
            yield Shard(folder, number, start=start, items=again, rows=rows, asked=asked, url_prefix=url_prefix)
        else:
            on_skip(footer.coverage["frames"]["in"])
        start = footer.stop


def _has_lost_images(tar: Path, path: Path, begun: bool) -> bool:
    """Whether a tar is gone or shorter than its ledger says; a retry that was killed may have left a shorter one."""
    return not tar.exists() or (not begun and tar.stat().st_size < ledger.least_tar_bytes(path))

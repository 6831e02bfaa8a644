"""Plans a download: its options, and the shards to fetch, of which only one's items are in memory at a time."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.catalog.files import Catalog, Item
from data_prep.download import ledger
from data_prep.download.failures import Failure
from data_prep.download.rate_limit import Limits
from data_prep.download.shard import Shard, image_names, shard_path

URL_PREFIX = "https://js-ad.a.yximgs.com/bs2/ad-material-video/"
SHARD_FRAMES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a download. Raises ValueError if one is invalid."""

    url_prefix: str = URL_PREFIX  # of an image's name in its URL
    shard_frames: int = SHARD_FRAMES  # frames per shard
    image_size: int | None = None  # longest shorter side of images, in pixels; None keeps all sizes
    splits: Sequence[str] | None = None  # None is all splits of the catalog
    domains: Sequence[str] | None = None  # None is all domains of the catalog
    retry: Sequence[str] = ()  # failures of earlier runs to try again
    placeholders: Sequence[str] = ()  # hex SHA-256 of images that count as missing; they are fetched again
    preflight: bool = True  # look for one image that arrives before requesting all
    contact: str = ""  # address for the server's owner, in the User-Agent
    headers: Sequence[str] = ()  # of every request to the host of `url_prefix`, but no other, as "Name: value"
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.url_prefix)
            host, _ = (url.hostname or "").encode("idna"), url.port  # both may be invalid
        except ValueError as error:
            raise ValueError(f"url_prefix is {self.url_prefix!r}, which is not a URL: {error}") from error
        if url.scheme not in ("http", "https") or not host:
            raise ValueError(f"url_prefix is {self.url_prefix!r}; it must start with http://… or https://…")
        check_choices("retry", self.retry, list(Failure))
        for header in self.headers:
            if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+:[^\r\n\0]*", header, re.ASCII):
                raise ValueError(f"header is {header!r}; it must be 'Name: value'")
        for sha256 in self.placeholders:
            if not re.fullmatch("[0-9a-f]{64}", sha256):
                raise ValueError(f"placeholder is {sha256!r}; it must be a SHA-256 of 64 lowercase hex digits")


def check_choices(name: str, values: Sequence[str], choices: Sequence[str]) -> None:
    """Raises ValueError if a value is not one of the choices."""
    if unknown := [value for value in values if value not in choices]:
        raise ValueError(f"{name} has {', '.join(map(repr, unknown))}; choose from {', '.join(choices)}")


def count_frames(catalog: Catalog, split: str, domain: str) -> int:
    """Returns the number of frames of a domain."""
    return sum(catalog.frame_counts(split, domain))


def take_items(items: Iterator[Item], frames: int) -> list[Item]:
    """Takes items until they have `frames` frames or are as many.

    With frames=4, items of 2, 2, 1 and 5 frames become shards of two items each.
    """
    taken, count = [], 0
    for item in items:
        taken.append(item)
        count += len(item.frames)
        if count >= frames or len(taken) >= frames:
            break
    return taken


def plan_shards(
    catalog: Catalog, out: Path, split: str, domain: str, options: Options, on_finished: Callable[[int], object]
) -> Iterator[Shard]:
    """Yields the shards of a domain that have something to fetch or to write, in row order.

    The last item of a shard may exceed `options.shard_frames`. `on_finished` is called with the number of frames of
    each shard that has nothing to do.
    """
    folder = out / split / domain
    folder.mkdir(parents=True, exist_ok=True)
    count, start = catalog.count(split, domain), 0
    items, items_row = iter(()), -1  # an iterator over the catalog, and the row of its next item
    for number in itertools.count():
        if start == count:
            return
        path = shard_path(folder, number, ".parquet")
        if not path.exists():
            if items_row != start:
                items = catalog.items(split, domain, start)
            taken = take_items(items, options.shard_frames)
            yield Shard(folder, number, options.url_prefix, start, taken, {}, range(len(image_names(taken))))
            start = items_row = start + len(taken)
            continue
        footer = ledger.read_footer(path)
        resumed = shard_path(folder, number, ".journal").exists()  # an interrupted retry
        tar = shard_path(folder, number, ".tar")
        # A tar may be missing, or shorter than its ledger says, unless an interrupted retry shortened it.
        lost = not tar.exists() or (not resumed and tar.stat().st_size < ledger.min_tar_bytes(path))
        rows = {}
        if not lost and (options.retry or options.placeholders or resumed):
            rows = dict(enumerate(ledger.read_rows(path)))
        retry, placeholders = options.retry, options.placeholders
        requested = [at for at, row in rows.items() if row.failure in retry or row.sha256 in placeholders]
        if requested or resumed or lost:
            taken = list(catalog.items(split, domain, start, footer.stop))
            requested = range(len(image_names(taken))) if lost else requested
            yield Shard(folder, number, options.url_prefix, start, taken, rows, requested)
        else:
            on_finished(footer.coverage["frames"]["in"])
        start = footer.stop

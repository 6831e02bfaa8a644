"""The download itself: workers that fetch the images of a few shards at a time, one process on one event loop."""

import asyncio
import collections
import contextlib
import dataclasses
import fcntl
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from data_prep.catalog.files import Catalog
from data_prep.common.domains import DOMAINS
from data_prep.download import content, coverage, plan, preflight
from data_prep.download.durable import replaced
from data_prep.download.failures import DownloadError, Failure
from data_prep.download.fetch import Fetcher, Limits, open_session
from data_prep.download.progress import SECONDS_BETWEEN_LINES, Progress
from data_prep.download.shard import Shard

VERSION = 1  # raise when the files change in form or meaning
SETTINGS_FILE = "settings.json"
LOCK_FILE = ".lock"
URL_PREFIX = "https://js-ad.a.yximgs.com/bs2/ad-material-video/"
SHARD_FRAMES = 2000
# Shards under way: a few images whose server hangs must not keep the others waiting. Their bodies are on the disk.
OPEN_SHARDS = 16
# The same bytes under so many names of a shard are worth a look.
_REPEATED, _REPEATED_SHARE = 20, 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to fetch, and how.

    Attributes:
      url_prefix: what makes a URL of an image's name.
      shard_frames: frames a shard.
      image_size: longest shorter side that images keep; None keeps all sizes.
      splits: of the catalog; None is all.
      domains: of `DOMAINS`.
      retry: failures to try again where an earlier run met them.
      placeholders: hex sha256 of images that are none; where such a one was taken for an image, it is asked again.
      preflight: whether to look for one image that arrives before asking for all.
      contact: an address for the server's owner, in the User-Agent.
      limits: of requests.

    Raises:
      DownloadError: a value out of range.
    """

    url_prefix: str = URL_PREFIX
    shard_frames: int = SHARD_FRAMES
    image_size: int | None = None
    splits: Sequence[str] | None = None
    domains: Sequence[str] = DOMAINS
    retry: Sequence[str] = ()
    placeholders: Sequence[str] = ()
    preflight: bool = True
    contact: str = ""
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self):
        try:
            url = URL(self.url_prefix)
        except ValueError as error:
            raise DownloadError(f"url_prefix {self.url_prefix!r} is no URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise DownloadError(f"url_prefix {self.url_prefix!r}: wanted http://… or https://…")
        _check_choices("retry", self.retry, list(Failure))
        _check_choices("domains", self.domains, DOMAINS)
        for sha256 in self.placeholders:
            if not re.fullmatch("[0-9a-f]{64}", sha256):
                raise DownloadError(f"placeholder {sha256!r}: wanted a sha256 as 64 small hex digits")


def _check_choices(name: str, values: Sequence[str], choices: Sequence[str]) -> None:
    if unknown := [value for value in values if value not in choices]:
        raise DownloadError(f"{name} {', '.join(map(repr, unknown))}: wanted {', '.join(choices)}")


async def download(catalog: Catalog, out: Path, options: Options, report: Callable[[str], None]) -> dict[str, Any]:
    """Fetches what no earlier run has fetched, and writes and returns the coverage.

    Killed or cancelled at any point, it goes on where it was when it is called again.

    Args:
      catalog: what there is.
      out: folder to write to, by one process at a time.
      options: see there.
      report: takes lines of progress.

    Raises:
      DownloadError: an option, or a folder that does not fit.
      CatalogError: the catalog cannot be read.
      Unavailable: the server does not serve.
      OSError: the disk is full, or the like.
    """
    splits = catalog.splits if options.splits is None else options.splits
    _check_choices("splits", splits, catalog.splits)
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        _settle(out, catalog, options)
        domains = [(split, domain) for split in splits for domain in options.domains]
        frames = sum(plan.count_frames(catalog, split, domain) for split, domain in domains)
        async with open_session(options.limits, options.contact) as session:
            await _Run(catalog, out, options, domains, Progress(frames), report, session).go()
        summary = coverage.measure(catalog, out)
        coverage.write(out, summary)
    return summary


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    with (out / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(f"another process downloads to {out}: wait for its end, or stop it") from error
        yield


def _settle(out: Path, catalog: Catalog, options: Options) -> None:
    """Writes down what the files in `out` depend on; an error where they were made with something else."""
    wanted = {
        "version": VERSION,
        "catalog": catalog.fingerprint,
        "shard_frames": options.shard_frames,
        "image_size": options.image_size,
    }
    path = out / SETTINGS_FILE
    if not path.exists():
        if others := {path.name for path in out.iterdir()} - {LOCK_FILE, f"{SETTINGS_FILE}.tmp"}:
            raise DownloadError(f"{out} holds {min(others)} and no {SETTINGS_FILE}: give --out another folder")
        with replaced(path) as file:
            file.write(json.dumps(wanted, indent=2).encode() + b"\n")
    found = json.loads(path.read_text(encoding="utf-8"))
    if changed := [f"{key} {found[key]!r}, now {value!r}" for key, value in wanted.items() if found[key] != value]:
        raise DownloadError(f"{out} was begun with {'; '.join(changed)}: use the same again, or another --out")


class _Run:
    """One call of `download`."""

    def __init__(
        self,
        catalog: Catalog,
        out: Path,
        options: Options,
        domains: Sequence[tuple[str, str]],
        progress: Progress,
        report: Callable[[str], None],
        session: aiohttp.ClientSession,
    ):
        self._catalog = catalog
        self._out = out
        self._options = options
        self._domains = domains
        self._progress = progress
        self._report = report
        self._refused = set(options.placeholders)
        check = functools.partial(content.check, image_size=options.image_size, refused=self._refused)
        self._fetcher = Fetcher(session, options.limits, check)
        self._queue: asyncio.Queue[tuple[Shard, int] | None] = asyncio.Queue(maxsize=2 * options.limits.concurrency)
        self._slots = asyncio.Semaphore(OPEN_SHARDS)
        self._open: set[Shard] = set()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._checked = False

    async def go(self) -> None:
        """Fetches all that there is to fetch."""
        try:
            async with asyncio.TaskGroup() as self._group:
                ticking = self._group.create_task(self._tick())
                workers = [self._group.create_task(self._work()) for _ in range(self._options.limits.concurrency)]
                await self._produce()
                for _ in workers:
                    await self._queue.put(None)
                await asyncio.wait(workers)
                ticking.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the others are of workers that met the same
        finally:
            self._writer.shutdown()  # a shard that is being written is written to its end
            for shard in self._open:
                shard.close()
        if self._progress.asked:
            self._say()

    async def _produce(self) -> None:
        """Opens shard after shard and queues what is to be asked for."""
        for split, domain in self._domains:
            shards = plan.unfinished_shards(
                self._catalog,
                self._out / split / domain,
                split,
                domain,
                shard_frames=self._options.shard_frames,
                url_prefix=self._options.url_prefix,
                retry=frozenset(self._options.retry),
                refused=frozenset(self._options.placeholders),
                on_skip=self._progress.skip,
            )
            # In a thread: to walk over finished shards and to read a row group takes a while.
            while shard := await asyncio.to_thread(next, shards, None):
                await self._slots.acquire()
                await self._start(shard)

    async def _start(self, shard: Shard) -> None:
        (self._out / coverage.SUMMARY_FILE).unlink(missing_ok=True)  # what it says will no longer be so
        self._open.add(shard)
        todo = shard.open()
        self._progress.skip(shard.frames - len(todo))
        if todo and not self._checked:
            self._checked = True
            await self._check(shard, todo)
        for position in todo:
            await self._queue.put((shard, position))
        if not todo:
            self._group.create_task(self._write(shard))

    async def _check(self, shard: Shard, todo: Sequence[int]) -> None:
        if self._options.preflight:
            positions = [*shard.arrived(), *todo]
            await preflight.check_server(self._fetcher, [shard.url(position) for position in positions])
        if placeholder := await preflight.find_placeholder(self._fetcher, self._options.url_prefix):
            self._report(f"the server sends an image for any name; the one with sha256 {placeholder} counts as none")
            self._refused.add(placeholder)

    async def _work(self) -> None:
        while job := await self._queue.get():
            shard, position = job
            answer = await self._fetcher.fetch(shard.url(position))
            shard.add(position, answer)
            self._progress.add(answer.failure)
            if shard.complete:
                self._group.create_task(self._write(shard))

    async def _write(self, shard: Shard) -> None:
        rows = await asyncio.get_running_loop().run_in_executor(self._writer, shard.write)
        self._open.remove(shard)
        self._slots.release()
        counts = collections.Counter(row.sha256 for row in rows if row.ok)
        for sha256, count in counts.most_common(1):
            if count >= max(_REPEATED, _REPEATED_SHARE * len(rows)):
                self._report(
                    f"{shard.path}: {count} of {len(rows)} images have sha256 {sha256}; look at one, "
                    f"and if it is a placeholder, run again with --placeholder={sha256}"
                )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LINES)
            self._say()

    def _say(self) -> None:
        limit = self._fetcher.rate(self._options.url_prefix)
        self._report(self._progress.line(limit=limit, paused=self._fetcher.pause))

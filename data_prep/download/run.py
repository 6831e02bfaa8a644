"""Runs a download: workers on one event loop fetch the images of a few shards at a time."""

import asyncio
import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from data_prep.catalog.files import Catalog
from data_prep.common.files import TEMPORARY, atomic_write, is_finished, lock_file
from data_prep.common.progress import Progress
from data_prep.download.content import check_image
from data_prep.download.coverage import SUMMARY_FILE, write_summary
from data_prep.download.failures import SERVER_FAILURES, Failure, PreflightError
from data_prep.download.fetch import Fetcher, open_session, origin_of, parse_url
from data_prep.download.plan import Options, check_choices, count_frames, plan_shards
from data_prep.download.shard import Shard

VERSION = 1  # increase if the form or the meaning of the files changes
SETTINGS_FILE = "settings.json"
LOCK_FILE = ".lock"
OPEN_SHARDS = 16  # so that a few images from a stalled server do not block the others; their bodies are on the disk
PREFLIGHT_SAMPLES = 20  # some images may be gone
MAX_SERVER_FAILURES = 3  # of the preflight: each takes all tries and their backoff
# Report a hash that occurs as often in a shard, because it may be a placeholder.
_REPEATED, _REPEATED_SHARE = 20, 0.05


async def download(catalog: Catalog, out: Path, options: Options, report: Callable[[str], None]) -> dict[str, Any]:
    """Fetches what earlier runs have not fetched, and writes and returns the summary.

    If it is interrupted, call it again: it resumes.

    Args:
        catalog: Catalog to fetch.
        out: Folder of the shards.
        options: Options of the download.
        report: Called with notes for the user.

    Raises:
        ValueError: An option is invalid, the folder belongs to another download, or the catalog is invalid.
        UnavailableError: The server does not work.
        OSError: Files cannot be written, such as on a full disk.
    """
    splits = catalog.splits if options.splits is None else options.splits
    check_choices("splits", splits, catalog.splits)
    chosen = catalog.domains if options.domains is None else options.domains
    check_choices("domains", list(chosen), list(catalog.domains))
    out.mkdir(parents=True, exist_ok=True)
    with lock_file(out / LOCK_FILE, f"is downloading to {out}"):
        settings = {"version": VERSION, "catalog": catalog.fingerprint}
        settings |= {"shard_frames": options.shard_frames, "image_size": options.image_size}
        if not is_finished(out, SETTINGS_FILE, settings, kind="a download"):
            with atomic_write(out / SETTINGS_FILE, "w", durable=True) as file:
                file.write(json.dumps(settings, indent=2) + "\n")
        for path in (*out.glob(f"*{TEMPORARY}"), *out.glob(f"*/*/*{TEMPORARY}")):
            path.unlink()  # left by a killed process
        domains = [(split, domain) for split in splits for domain in chosen]
        frames = sum(count_frames(catalog, split, domain) for split, domain in domains)
        async with open_session(options.limits, options.contact) as session:
            with Progress(total=frames, desc="Downloading", unit="images") as progress:
                await _Run(catalog, out, options, progress, report, session).run(domains)
        return write_summary(catalog, out)


@dataclasses.dataclass(eq=False)
class _Run:
    """One call of `download`."""

    catalog: Catalog
    out: Path
    options: Options
    progress: Progress
    report: Callable[[str], None]
    session: aiohttp.ClientSession

    def __post_init__(self) -> None:
        options = self.options
        self._prefix = options.url_prefix
        self._placeholders = set(options.placeholders)
        check = functools.partial(check_image, image_size=options.image_size, placeholders=self._placeholders)
        headers = {name: value.strip() for name, _, value in (text.partition(":") for text in options.headers)}
        try:
            origin = origin_of(parse_url(self._prefix))
        except ValueError as error:
            raise ValueError(f"url_prefix is {self._prefix!r}, which is not a URL: {error}") from error
        self._fetcher = Fetcher(self.session, options.limits, check, headers, origin)
        self._queue: asyncio.Queue[tuple[Shard, int] | None] = asyncio.Queue(maxsize=2 * options.limits.concurrency)
        self._slots = asyncio.Semaphore(OPEN_SHARDS)
        self._open: set[Shard] = set()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._failed: collections.Counter[Failure] = collections.Counter()
        self._preflight_done = False

    async def run(self, domains: Sequence[tuple[str, str]]) -> None:
        """Fetches the given domains of splits."""
        try:
            async with asyncio.TaskGroup() as self._group:
                progress = self._group.create_task(self._show_progress())
                workers = [self._group.create_task(self._work()) for _ in range(self.options.limits.concurrency)]
                await self._queue_shards(domains)
                for _ in workers:
                    await self._queue.put(None)
                await asyncio.wait(workers)
                progress.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the others are of workers with the same error
        finally:
            self._writer.shutdown()  # waits for the shard that is being written
            for shard in self._open:
                shard.close()
            self._update_status()

    async def _queue_shards(self, domains: Sequence[tuple[str, str]]) -> None:
        """Opens one shard after the other and queues the positions to fetch."""
        loop = asyncio.get_running_loop()
        for split, domain in domains:
            on_finished = functools.partial(loop.call_soon_threadsafe, self.progress.skip)
            shards = plan_shards(self.catalog, self.out, split, domain, self.options, on_finished)
            # In a thread, because it takes a while to pass finished shards and to read a row group.
            while shard := await asyncio.to_thread(next, shards, None):
                await self._slots.acquire()
                (self.out / SUMMARY_FILE).unlink(missing_ok=True)  # it is about to become outdated
                await self._start(shard)

    async def _start(self, shard: Shard) -> None:
        shard.open()
        self._open.add(shard)
        self.progress.skip(shard.frames - len(shard.todo))
        if shard.todo and not self._preflight_done:
            self._preflight_done = True
            await self._check_server(shard)
        for position in shard.todo:
            await self._queue.put((shard, position))
        if not shard.todo:
            self._group.create_task(self._write(shard))

    async def _check_server(self, shard: Shard) -> None:
        if self.options.preflight:
            urls = [shard.url(position) for position in (*shard.arrived(), *shard.todo)]
            await _find_image(self._fetcher, urls)
        if not (first := shard.url(0)).startswith(self._prefix):  # the images' names are URLs
            self._prefix = first.rpartition("/")[0] + "/"
        if placeholder := await _find_placeholder(self._fetcher, self._prefix):
            self.report(
                f"the server sends an image for any name; images with its SHA-256 {placeholder} count as missing"
            )
            self._placeholders.add(placeholder)

    async def _work(self) -> None:
        while job := await self._queue.get():
            shard, position = job
            answer = await self._fetcher.fetch(shard.url(position), video=shard.is_video(position))
            shard.add(position, answer)
            self.progress.update()
            if answer.failure:
                self._failed[answer.failure] += 1
            if shard.complete:
                self._group.create_task(self._write(shard))

    async def _write(self, shard: Shard) -> None:
        rows = await asyncio.get_running_loop().run_in_executor(self._writer, shard.write)
        self._open.remove(shard)
        self._slots.release()
        counts = collections.Counter(row.sha256 for row in rows if row.ok)
        for sha256, count in counts.most_common(1):
            if count >= max(_REPEATED, _REPEATED_SHARE * len(rows)):
                self.report(
                    f"{shard.path}: {count} of {len(rows)} images have SHA-256 {sha256}; look at one, "
                    f"and if it is a placeholder, run again with --placeholder={sha256}"
                )

    async def _show_progress(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._update_status()
            self.progress.update(0)

    def _update_status(self) -> None:
        rate = self._fetcher.rate(self._prefix)
        self.progress.set_postfix_str(format_status(self._failed, rate, self._fetcher.pause), refresh=False)


def format_status(failed: Mapping[Failure, int], rate: float, pause: float) -> str:
    """Returns the failures so far, the rate limit and, during a pause, its seconds, in one line."""
    parts = [f"limit {rate:.1f}/s"]
    if failed:
        reasons = sorted(failed.items(), key=lambda item: -item[1])
        parts.append(f"{sum(failed.values()):,} failed: " + ", ".join(f"{name} {count:,}" for name, count in reasons))
    if pause > 0:
        parts.append(f"most requests fail: pause of {pause:.0f} s")
    return "; ".join(parts)


async def _check_host(fetcher: Fetcher, url: URL) -> None:
    try:
        if not fetcher.proxy(url):  # which looks up the name itself
            await asyncio.get_running_loop().getaddrinfo(url.raw_host, url.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PreflightError(f"the host {url.host} of --url_prefix does not resolve: {error}") from error


async def _find_image(fetcher: Fetcher, urls: Sequence[str]) -> None:
    """Tries up to `PREFLIGHT_SAMPLES` of `urls` one by one, until one is an image.

    Raises:
        PreflightError: The host's name does not resolve, or none is an image.
    """
    with contextlib.suppress(ValueError):  # an invalid URL is a failure below, and the others may be valid
        await _check_host(fetcher, parse_url(urls[0]))
    failures, server_failures = [], 0
    for url in urls[:: -(-len(urls) // PREFLIGHT_SAMPLES)]:
        answer = await fetcher.fetch(url, video=True)
        if answer.picture:
            return
        failures.append(f"  {url}: {answer.failure}, {answer.error_message}")
        server_failures += answer.failure in SERVER_FAILURES
        if server_failures == MAX_SERVER_FAILURES:
            break
    shown = "\n".join(failures[-MAX_SERVER_FAILURES:])
    raise PreflightError(
        f"none of {len(failures)} images could be fetched; is --url_prefix right? If so, use --nopreflight\n{shown}"
    )


async def _find_placeholder(fetcher: Fetcher, url_prefix: str) -> str | None:
    """Returns the SHA-256 of the image that the server sends for a nonexistent name; None if it sends none."""
    answer = await fetcher.fetch(f"{url_prefix}{uuid.uuid4()}-is-no-image.jpg")
    return hashlib.sha256(answer.picture.data).hexdigest() if answer.picture else None

"""Downloads the images of a catalog: politely, in row order, into tar shards, each with a ledger beside it.

    python -m data_prep.download --catalog=DIR --out=DIR [--rate=200] [--concurrency=64] [--contact=you@example.org]

Killed or stopped at any point, the same command goes on where it was. What has arrived, is gone (404, 410) or has
failed all its tries is not asked for again; `--retry=timeout,5xx` asks for what failed so. A shard is laid out as
img2dataset's are: <out>/<split>/<domain>/00000.tar and 00000.parquet. Coverage goes to <out>/summary.json.

Exit codes: 0 every URL has its answer; 1 a mistake in the flags or the folder, or a full disk; 3 the preflight found no
host or no image; 4 most requests fail, so that it gave up; 130 and 143 stopped by Ctrl-C or SIGTERM. After all of them
the same command goes on.
"""

import asyncio
import signal
import sys
from pathlib import Path

import uvloop
from absl import app, flags

from data_prep.catalog.files import Catalog, CatalogError
from data_prep.common.domains import DOMAINS
from data_prep.download import coverage, run
from data_prep.download.failures import DownloadError, Failure, PreflightError, Unavailable
from data_prep.download.fetch import Limits

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    limits = Limits()
    flags.DEFINE_string("catalog", None, "Folder of the catalog.", required=True)
    flags.DEFINE_string("out", None, "Folder for the shards.", required=True)
    flags.DEFINE_string("url_prefix", run.URL_PREFIX, "What makes a URL of an image's name.")
    flags.DEFINE_list("splits", None, "Splits to fetch; default: all.")
    flags.DEFINE_list("domains", list(DOMAINS), "Domains to fetch.")
    flags.DEFINE_list("retry", [], f"Failures of earlier runs to try again: {', '.join(Failure)}.")
    flags.DEFINE_list("placeholder", [], "sha256 of images that stand for missing ones.")
    flags.DEFINE_string("contact", "", "Your address, for the server's owner: part of the User-Agent.")
    flags.DEFINE_integer("image_size", None, "Longest shorter side of images; default: any.", lower_bound=1)
    flags.DEFINE_integer("shard_frames", run.SHARD_FRAMES, "Frames a shard.", lower_bound=1, upper_bound=99_999)
    flags.DEFINE_bool("preflight", True, "Look for one image that arrives before asking for all.")
    flags.DEFINE_float("rate", limits.rate, "Requests a second to one host, at most.", lower_bound=0.01)
    flags.DEFINE_integer("concurrency", limits.concurrency, "Requests to one host at a time.", lower_bound=1)
    flags.DEFINE_float("deadline", limits.deadline, "Seconds a try, from connecting to the last byte.", lower_bound=0)
    flags.DEFINE_integer("max_bytes", limits.max_bytes, "Largest image.", lower_bound=1)
    flags.DEFINE_integer("tries", limits.tries, "Tries of one URL in one run.", lower_bound=1)


def read_flags() -> run.Options:
    """Returns the options that the flags give."""
    limits = Limits(
        rate=FLAGS.rate,
        concurrency=FLAGS.concurrency,
        deadline=FLAGS.deadline,
        max_bytes=FLAGS.max_bytes,
        tries=FLAGS.tries,
    )
    return run.Options(
        url_prefix=FLAGS.url_prefix,
        shard_frames=FLAGS.shard_frames,
        image_size=FLAGS.image_size,
        splits=FLAGS.splits,
        domains=FLAGS.domains,
        retry=FLAGS.retry,
        placeholders=FLAGS.placeholder,
        preflight=FLAGS.preflight,
        contact=FLAGS.contact,
        limits=limits,
    )


async def download_until_stopped(catalog: Catalog, out: Path, options: run.Options) -> int:
    """Downloads and prints the coverage; returns 0, or what a program that a signal stops returns."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(run.download(catalog, out, options, report=lambda line: print(line, flush=True)))
    stopped_by: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        stopped_by.append(number)
        task.cancel()
        loop.remove_signal_handler(number)  # a second one ends it at once

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        summary = await task
    except asyncio.CancelledError:
        print("stopped; run this again to go on", file=sys.stderr)
        return 128 + stopped_by[0]
    print(coverage.format_summary(summary))
    if hint := coverage.retry_hint(summary):
        print(hint)
    return 0


def main(argv: list[str]) -> int:
    """Runs the command; see the module's text."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        return uvloop.run(download_until_stopped(Catalog(Path(FLAGS.catalog)), Path(FLAGS.out), read_flags()))
    except (DownloadError, CatalogError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Unavailable as error:
        print(f"error: {error}; run this again later to go on", file=sys.stderr)
        return 3 if isinstance(error, PreflightError) else 4


if __name__ == "__main__":
    define_flags()
    app.run(main)

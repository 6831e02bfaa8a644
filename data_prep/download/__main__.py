"""Downloads the images and videos of a catalog, in row order, into tar shards with a ledger each.

    python -m data_prep.download --catalog=DIR --out=DIR [--rate=200] [--concurrency=64] [--contact=you@example.org]

If it is interrupted, run the same command again: it resumes. Images that have arrived, are gone (404, 410) or failed
all tries are not requested again; `--retry=timeout,5xx` tries these failures again. Shards have the layout of
img2dataset: <out>/<split>/<domain>/00000.tar and 00000.parquet. <out>/summary.json says how much has arrived.

Exit codes: 0 every URL has an answer; 1 a flag or the folder is invalid, or the disk is full; 3 the preflight found no
host or no image; 4 it gave up because most requests fail; 130 and 143 stopped by Ctrl-C or SIGTERM.
"""

import asyncio
import functools
import signal
import sys
from pathlib import Path

from absl import flags

from data_prep.catalog.files import Catalog
from data_prep.common import cli
from data_prep.common.progress import Progress
from data_prep.download.coverage import format_summary, retry_hint
from data_prep.download.failures import Failure, PreflightError, UnavailableError
from data_prep.download.plan import SHARD_FRAMES, URL_PREFIX, Options
from data_prep.download.rate_limit import Limits

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    limits = Limits()
    flags.DEFINE_string("catalog", None, "Folder of the catalog.", required=True)
    flags.DEFINE_string("out", None, "Folder for the shards.", required=True)
    flags.DEFINE_string("url_prefix", URL_PREFIX, "Prefix of an image's name in its URL.")
    flags.DEFINE_list("splits", None, "Splits to fetch; default: all.")
    flags.DEFINE_list("domains", None, "Domains to fetch; default: all.")
    flags.DEFINE_list("retry", [], f"Failures of earlier runs to try again: {', '.join(Failure)}.")
    flags.DEFINE_list("placeholder", [], "SHA-256 of images that count as missing.")
    flags.DEFINE_string("contact", "", "Your address for the server's owner, part of the User-Agent.")
    flags.DEFINE_multi_string(
        "header", [], "Header of requests to the host of --url_prefix, and no other, as 'Name: value'; may be repeated."
    )
    flags.DEFINE_integer("image_size", None, "Longest shorter side of images; default: any.", lower_bound=1)
    flags.DEFINE_integer("shard_frames", SHARD_FRAMES, "Frames per shard.", lower_bound=1, upper_bound=99_999)
    flags.DEFINE_bool("preflight", True, "Look for one image that arrives before requesting all.")
    flags.DEFINE_float("rate", limits.rate, "Largest number of requests per second to a host.", lower_bound=0.01)
    flags.DEFINE_integer("concurrency", limits.concurrency, "Simultaneous requests to a host.", lower_bound=1)
    flags.DEFINE_float("deadline", limits.deadline, "Seconds per try, including the whole body.", lower_bound=0)
    flags.DEFINE_integer("max_bytes", limits.max_bytes, "Largest image or video.", lower_bound=1)
    flags.DEFINE_integer("tries", limits.tries, "Tries of a URL in one run.", lower_bound=1)


def read_flags() -> Options:
    """Returns the options from the flags of the same names."""
    names = ("url_prefix", "shard_frames", "image_size", "splits", "domains", "retry", "preflight", "contact")
    limits = ("rate", "concurrency", "deadline", "max_bytes", "tries")
    return Options(
        **{name: getattr(FLAGS, name) for name in names},
        placeholders=FLAGS.placeholder,
        headers=FLAGS.header,
        limits=Limits(**{name: getattr(FLAGS, name) for name in limits}),
    )


async def download_until_stopped(catalog: Catalog, out: Path, options: Options) -> int:
    """Downloads and prints the summary; returns the exit code."""
    from data_prep.download.run import download  # here, because --help works without the extra "download"

    loop = asyncio.get_running_loop()
    report = functools.partial(Progress.write, file=sys.stderr)
    task = asyncio.ensure_future(download(catalog, out, options, report))
    stopped_by: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        stopped_by.append(number)
        task.cancel()
        loop.remove_signal_handler(number)  # a second signal ends the process at once

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        summary = await task
    except asyncio.CancelledError:
        print("download: stopped; run the same command again to resume", file=sys.stderr)
        return 128 + stopped_by[0]
    print(format_summary(summary))
    if hint := retry_hint(summary):
        print(hint)
    return 0


def main() -> int:
    """Runs the command and returns its exit code."""
    import uvloop

    try:
        return uvloop.run(download_until_stopped(Catalog(Path(FLAGS.catalog)), Path(FLAGS.out), read_flags()))
    except UnavailableError as error:
        print(f"download: {error}; run the same command again later to resume", file=sys.stderr)
        return 3 if isinstance(error, PreflightError) else 4


if __name__ == "__main__":
    define_flags()
    cli.run("download", main)

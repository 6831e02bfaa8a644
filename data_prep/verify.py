"""Reads a built data set whole and reports damage, with file and record.

    python -m data_prep.verify --data_dir=DIR [--processes=N]

Exit code 0: the records are those that were written (by their checksums), every one parses, every frame decodes, the
counts are those of the summary, and products and items point at each other. 1: something is wrong, a line each.
"""

import collections
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags, logging
from google.protobuf.json_format import ParseError
from tensorflow_datasets.core.constants import DATASET_INFO_FILENAME

from data_prep.build import SUMMARY_FILE
from data_prep.common.domains import DOMAINS
from data_prep.common.process_pool import ProcessMap, process_map
from data_prep.records.checks import NO_LINKS, Check, check_items, check_products, unmatched
from data_prep.rope.rope_dataset_builder import Builder, read_fingerprint

FLAGS = flags.FLAGS
Damage = tuple[Path, list[str]]  # a file or folder, and what is wrong in it
MOST_LINES = 20  # of damage in one file: a lost one has as many as records


def verify(data_dir: Path, *, processes: int | None = None, report: Callable[[str], None] = print) -> int:
    """Checks the data sets in <data_dir>/rope, reports each damage as a line and returns how many there are."""
    damages = 0
    with process_map(processes) as apply:
        for place, found in _find_damages(data_dir / Builder.name, apply, report):
            for damage in found[:MOST_LINES]:
                report(f"{place}: {damage}")
            if len(found) > MOST_LINES:
                report(f"{place}: and {len(found) - MOST_LINES} more")
            damages += len(found)
    return damages


def _find_damages(folder: Path, apply: ProcessMap, report: Callable[[str], None]) -> Iterator[Damage]:
    path = folder / SUMMARY_FILE
    if not path.exists():
        yield path, ["not found: no build was finished here"]
        return
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        fingerprint, splits = summary["fingerprint"], summary["splits"]
    except (ValueError, KeyError, TypeError) as error:
        yield path, [f"cannot be read: {error!r}"]
        return
    folders = {name: folder / name / str(Builder.VERSION) for name in (*DOMAINS, "product")}
    for at in folders.values():
        if not (at / DATASET_INFO_FILENAME).exists():
            yield at, ["no finished data set"]
            return
        try:
            built_from = read_fingerprint(at)
            tfds.builder_from_directory(at)
        except (ValueError, ParseError) as error:
            yield at, [f"its descriptions, *.json and fingerprint, cannot be read: {error!r}"]
            return
        if built_from != fingerprint:
            yield at, [f"built from other inputs than {path} says"]
    for split, counts in splits.items():
        items = {domain: _check_files(folders[domain], split, check_items, apply) for domain in DOMAINS}
        products = _check_files(folders["product"], split, check_products, apply)
        for domain, files in items.items():
            yield from _find_wrong_counts(folders[domain], split, counts[domain], files)
        yield from _find_wrong_counts(folders["product"], split, {"items": counts["product"]["products"]}, products)
        for domain, files in items.items():
            yield from _find_wrong_links(domain, files, products)
        report(f"{split}: read " + ", ".join(f"{sum(check.rows for _, check in items[d])} {d} items" for d in DOMAINS))


def _check_files(
    folder: Path, split: str, check: Callable[[Path], Check], apply: ProcessMap
) -> list[tuple[Path, Check]]:
    """Returns the files of a split in order and what they hold."""
    splits = tfds.builder_from_directory(folder).info.splits
    paths = [Path(path) for path in splits[split].filepaths] if split in splits else []
    checks = dict(apply(check, paths))
    return [(path, checks[index]) for index, path in enumerate(paths)]


def _find_wrong_counts(folder: Path, split: str, counts: dict, files: list[tuple[Path, Check]]) -> Iterator[Damage]:
    for path, check in files:
        if check.damages:
            yield path, check.damages
    lengths = [check.rows for _, check in files]
    splits = tfds.builder_from_directory(folder).info.splits
    wanted = splits[split].shard_lengths if split in splits else None
    if lengths != wanted:
        yield folder, [f"split {split!r} has files of {lengths} records, wanted {wanted}"]
    found = {"items": sum(lengths), "frames": sum(check.frames for _, check in files)}
    for name, part in counts.items():
        if name in found and found[name] != part["kept"]:
            yield folder, [f"split {split!r} has {found[name]} {name}, wanted {part['kept']}"]


def _find_wrong_links(
    domain: str, files: list[tuple[Path, Check]], products: list[tuple[Path, Check]]
) -> Iterator[Damage]:
    """Compares what items say of their products with what products say of their items."""
    starts = np.cumsum([0, *(check.rows for _, check in files)])
    said = [check.links["item"] + [start, 0] for (_, check), start in zip(files, starts, strict=False)]
    pointed = [check.links[domain] for _, check in products]
    missing, wrong = unmatched(np.concatenate([NO_LINKS, *said]), np.concatenate([NO_LINKS, *pointed]))
    damages: dict[Path, list[str]] = collections.defaultdict(list)
    for links, text in (
        (missing, "no product record {} points at it"),
        (wrong, "is none of product {}, which points at it"),
    ):
        for row, product in links.tolist():
            number = int(np.searchsorted(starts, row, side="right")) - 1
            if 0 <= number < len(files):
                damages[files[number][0]].append(f"record {row - starts[number]}: {text.format(product)}")
            else:
                folder = products[0][0].parent
                damages[folder].append(f"product {product} points at {domain} row {row} of {starts[-1]}")
    yield from damages.items()


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("data_dir", None, "Folder with the data sets, in its folder rope.", required=True)
    flags.DEFINE_integer("processes", None, "Processes that read; default: one a core.", lower_bound=1)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.ERROR)  # TFDS tells of each data set that it opens
    try:
        damages = verify(Path(FLAGS.data_dir), processes=FLAGS.processes)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a worker was killed, perhaps for want of memory", file=sys.stderr)
        return 1
    print(f"{damages} damages" if damages else "no damage")
    return 1 if damages else 0


if __name__ == "__main__":
    define_flags()
    app.run(main)

"""Reads a whole built data set and reports every problem with its file and record.

    python -m data_prep.verify --data_dir=DIR [--processes=N]

Exit code 0: all records have the checksums with which they were written and can be parsed, every frame decodes, the
counts match the summary, and products and items refer to each other. Exit code 1: problems were found, one per line.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tensorflow_datasets.core.constants import FEATURES_FILENAME

from data_prep.build import SUMMARY_FILE
from data_prep.common.cli import run
from data_prep.common.domains import find_data_set, read_domains
from data_prep.common.files import read_json
from data_prep.common.process_pool import ProcessMap, process_map
from data_prep.records.checks import Check, as_links, check_items, check_products, differences
from data_prep.records.schema import read_splits
from data_prep.rope.rope_dataset_builder import Builder, read_fingerprint

FLAGS = flags.FLAGS
Problems = tuple[Path, list[str]]  # a file or folder and its problems
Files = Mapping[Path, int]  # the files of a split, in order, and their numbers of records
CheckedFiles = list[tuple[Path, Check]]
MAX_LINES = 20  # problems shown per file; a lost file has as many as records


def verify(data_dir: Path, *, processes: int | None = None, report: Callable[[str], None] = print) -> int:
    """Checks a data set (see `find_data_set`), reports each problem in a line and returns the number of problems."""
    count = 0
    with process_map(processes) as apply:
        for place, problems in _find_problems(find_data_set(data_dir), apply, report):
            for problem in problems[:MAX_LINES]:
                report(f"{place}: {problem}")
            if len(problems) > MAX_LINES:
                report(f"{place}: and {len(problems) - MAX_LINES} more")
            count += len(problems)
    return count


def _find_problems(folder: Path, apply: ProcessMap, report: Callable[[str], None]) -> Iterator[Problems]:
    place = path = folder / SUMMARY_FILE
    folders: dict[str, Path] = {}
    files: dict[str, dict[str, dict[Path, int]]] = {}
    try:
        if not path.exists():
            raise FileNotFoundError("not found: no build was finished here")
        summary = read_json(path, keys=("fingerprint", "splits"), remedy="run the same build again")
        place = folder
        for name in (*read_domains(folder), "product"):
            place = folders[name] = folder / name / str(Builder.VERSION)
            files[name] = read_splits(place)
            read_json(place / FEATURES_FILENAME, remedy=f"remove {place} and build it again")
            if read_fingerprint(place) != summary["fingerprint"]:
                yield place, [f"built from other inputs than {path}"]
    except (ValueError, FileNotFoundError) as error:
        yield place, [str(error)]
        return
    for split, counts in summary["splits"].items():
        of_split = {name: own.get(split, {}) for name, own in files.items()}
        yield from _check_split(folders, of_split, split, counts, apply, report)


def _check_split(
    folders: Mapping[str, Path],
    files: Mapping[str, Files],
    split: str,
    counts: Mapping[str, Any],
    apply: ProcessMap,
    report: Callable[[str], None],
) -> Iterator[Problems]:
    domains = [name for name in files if name != "product"]
    items = {domain: _check_files(files[domain], check_items, apply) for domain in domains}
    products = _check_files(files["product"], partial(check_products, domains=domains), apply)
    kept = {domain: counts[domain] for domain in domains} | {"product": {"items": counts["product"]["products"]}}
    for name, checked in (items | {"product": products}).items():
        yield from _check_counts(folders[name], split, kept[name], list(files[name].values()), checked)
    for domain, checked in items.items():
        yield from _check_links(domain, checked, products)
    report(f"{split}: read " + ", ".join(f"{sum(check.rows for _, check in items[d])} {d} items" for d in domains))


def _check_files(files: Files, check: Callable[[Path], Check], apply: ProcessMap) -> CheckedFiles:
    checks = dict(apply(check, list(files)))
    return [(path, checks[index]) for index, path in enumerate(files)]


def _check_counts(
    folder: Path, split: str, counts: Mapping[str, Any], expected: list[int], files: CheckedFiles
) -> Iterator[Problems]:
    """Yields the problems of the files, and of the numbers of their records and frames."""
    for path, check in files:
        if check.problems:
            yield path, check.problems
    lengths = [check.rows for _, check in files]
    if lengths != expected:
        yield folder, [f"split {split!r} has files of {lengths} records, expected {expected}"]
    found = {"items": sum(lengths), "frames": sum(check.frames for _, check in files)}
    for name, part in counts.items():
        if name in found and found[name] != part["kept"]:
            yield folder, [f"split {split!r} has {found[name]} {name}, expected {part['kept']}"]


def _check_links(domain: str, files: CheckedFiles, products: CheckedFiles) -> Iterator[Problems]:
    """Compares the products listed by items with the items listed by products."""
    starts = np.cumsum([0, *(check.rows for _, check in files)])
    by_items = [check.links["item"] + [start, 0] for (_, check), start in zip(files, starts, strict=False)]
    by_products = [check.links[domain] for _, check in products]
    not_in_product, not_in_item = differences(
        np.concatenate([as_links([]), *by_items]), np.concatenate([as_links([]), *by_products])
    )
    problems: dict[Path, list[str]] = collections.defaultdict(list)
    for links, text in (
        (not_in_product, "the item lists product {0}, but product {0} does not list the item"),
        (not_in_item, "product {0} lists the item, but the item does not list product {0}"),
    ):
        for row, product in links.tolist():
            number = int(np.searchsorted(starts, row, side="right")) - 1
            if 0 <= number < len(files):
                problems[files[number][0]].append(f"record {row - starts[number]}: {text.format(product)}")
            else:
                folder = products[0][0].parent
                problems[folder].append(f"product {product} lists {domain} row {row}, but there are {starts[-1]} rows")
    yield from problems.items()


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("data_dir", None, "Folder with the data set, or the data set itself.", required=True)
    flags.DEFINE_integer("processes", None, "Number of processes. Default: one per core.", lower_bound=1)


def main() -> int:
    count = verify(Path(FLAGS.data_dir), processes=FLAGS.processes, report=partial(print, flush=True))
    print(f"{count} problem{'s' if count > 1 else ''} found." if count else "No problems found.")
    return 1 if count else 0


if __name__ == "__main__":
    define_flags()
    run("verify", main)

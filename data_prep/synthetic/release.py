"""The synthetic release: text files and JPEG images, with difficulties like the real one's."""

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from data_prep.catalog.release import FILES, PREFIXES
from data_prep.common.process_pool import process_map
from data_prep.synthetic.plan import Plan, PlannedItem, plan_release
from data_prep.synthetic.products import Attributes
from data_prep.synthetic.scenes import draw_item
from data_prep.synthetic.seeds import generator

# Raise when the drawing or the texts change: a release of an older recipe is then not taken for this one.
RECIPE = 6
OPTIONS_FILE = "synthetic.json"
# There are about a million combinations of attributes: with most of them taken, all would be near-duplicates.
LIMITS = {
    "train_products": (8, 200_000),
    "test_products": (8, 200_000),
    "image_side": (16, 4096),
    "processes": (1, 1024),
}
BATCH = 48  # items a process draws at a time


class SyntheticError(ValueError):
    """A release that cannot be written; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Items for one process to draw, all of one split, and where the images go."""

    items: Sequence[PlannedItem]
    shelf: tuple[Attributes, ...]
    images: Path
    side: int
    seed: int


def write_release(
    directory: Path | str,
    *,
    train_products: int,
    test_products: int,
    image_side: int,
    seed: int,
    processes: int = 1,
) -> Path:
    """Writes a release with the splits `train` and `test`; keeps a finished one of the same options.

    Args:
      directory: folder to make; it must not exist, be empty, or hold this very release.
      train_products: products of the training split.
      test_products: products of the test split, none of them in training.
      image_side: width and height of all images in pixels.
      seed: any integer; other seeds give other products, items and pictures.
      processes: how many draw; the result is the same for any number.

    Returns:
      The folder with 18 text files, `images/` and `synthetic.json`, which records the options.

    Raises:
      SyntheticError: the folder holds something else, an option is out of range, or a process was killed.
    """
    directory = Path(directory)
    options = {
        "recipe": RECIPE, "train_products": train_products, "test_products": test_products,
        "image_side": image_side, "seed": seed,
    }  # fmt: skip
    _check(options | {"processes": processes})
    if _is_written(directory, options):
        print(f"{directory} is already written")
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(f"{directory.name}.writing")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "images").mkdir(parents=True)
    plan = plan_release(train_products, test_products, seed)
    for name, rows in text_files(plan, seed):
        (unfinished / name).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    _draw(plan, unfinished / "images", image_side, seed, processes)
    (unfinished / OPTIONS_FILE).write_text(json.dumps(options, indent=2) + "\n")
    os.replace(unfinished, directory)
    return directory


def _check(options: dict[str, int]) -> None:
    faults = [
        f"--{name}={options[name]} ({least} to {most})"
        for name, (least, most) in LIMITS.items()
        if not least <= options[name] <= most
    ]
    if faults:
        raise SyntheticError(f"out of range: {', '.join(faults)}")


def _is_written(directory: Path, options: dict[str, int]) -> bool:
    """Whether the folder already holds this release; an error where it holds anything else."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    if not (directory / OPTIONS_FILE).is_file():
        raise SyntheticError(f"{directory} exists and is no synthetic release; choose another --out or remove it")
    found = json.loads((directory / OPTIONS_FILE).read_text())
    if found != options:
        raise SyntheticError(
            f"{directory} holds a release of other options: {_spelled(found)}, not {_spelled(options)}; "
            "choose another --out or remove it"
        )
    return True


def _spelled(options: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


def text_files(plan: Plan, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Yields (file name, rows in random order) of all 18 text files, blanks as in the real ones."""
    for split, prefix in PREFIXES.items():
        for domain, (pairs, texts, frames) in FILES.items():
            items = [item for item in plan.items if (item.split, item.domain) == (split, domain)]
            tables = {
                pairs: [f"{p.product_id}, {item.item_id}" for item in items for p in item.products],
                texts: [f"{item.item_id}, {item.text}" for item in items],
                frames: [row for item in items for row in _frame_rows(item)],
            }
            for table, rows in tables.items():
                order = generator(seed, "rows", split, table).permutation(len(rows))
                yield f"{prefix}{table}.txt", [rows[i] for i in order]


def _frame_rows(item: PlannedItem) -> Iterator[str]:
    for moment, name in item.frames:
        yield f"{item.item_id}, {name} " if item.domain == "page" else f"{item.item_id}, {moment}, {name} "


def _draw(plan: Plan, images: Path, side: int, seed: int, processes: int) -> None:
    batches = [
        Batch(items[start : start + BATCH], plan.shelves[split], images, side, seed)
        for split in plan.products
        for items in [[item for item in plan.items if item.split == split]]
        for start in range(0, len(items), BATCH)
    ]
    total = sum(len(item.frames) for item in plan.items)
    try:
        with process_map(min(processes, len(batches))) as apply:
            _report((count for _, count in apply(draw_batch, batches)), total)
    except BrokenProcessPool as error:
        raise SyntheticError("a worker was killed, perhaps for want of memory: try fewer --processes") from error


def draw_batch(batch: Batch) -> int:
    """Draws and writes the images of some items; returns their number."""
    count = 0
    for item in batch.items:
        rng = generator(batch.seed, "scene", item.domain, item.item_id)
        frames = draw_item(item.domain, item.shown, batch.shelf, frames=len(item.frames), side=batch.side, rng=rng)
        for (_, name), encoded in zip(item.frames, frames, strict=True):
            (batch.images / name).write_bytes(encoded)
            count += 1
    return count


def _report(counts: Iterable[int], total: int) -> None:
    """Keeps one line of progress on a terminal; elsewhere writes a line every ten seconds."""
    live, start = sys.stderr.isatty(), time.monotonic()
    done, said = 0, start
    for count in counts:
        done, now = done + count, time.monotonic()
        if now - said < (0.2 if live else 10) and done < total:
            continue
        said, rate = now, done / max(now - start, 1e-9)
        line = f"images {done:,} of {total:,}, {rate:,.0f}/s, {(total - done) / rate:.0f} s left"
        print(
            f"\r{line:<60}" if live else line,
            end="" if live and done < total else "\n",
            file=sys.stderr,
            flush=True,
        )

"""Converts GroceryStoreDataset into a release: a small public stand-in for ROPE with real photos.

Each class becomes a page: its studio image, with name and description as text. Shop photos with consecutive numbers
usually show one scene; each such run becomes a clip, alternately a video and a live. Clips have no text.

    python -m data_prep.sources.grocery --checkout=GroceryStoreDataset --out=/data/grocery
"""

import contextlib
import csv
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from absl import flags

from data_prep.catalog.release_parser import FILES, NO_TEXT, PREFIXES
from data_prep.common import cli
from data_prep.common.files import atomic_folder, is_finished

FLAGS = flags.FLAGS
TEST_LISTS = ("auto", "val", "test")
RECORD = "grocery.json"  # stored in the release: options, source and counts

_COLUMNS = ("Class Name (str)", "Class ID (int)", "Iconic Image Path (str)", "Product Description Path (str)")
_NUMBERED = re.compile(r"(.*?)(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
_ERRORS_SHOWN = 10


class _Page(NamedTuple):
    product_id: int
    text: str
    image: str  # path inside `dataset/`, like all paths here


class _Photo(NamedTuple):
    product_id: int
    series: str  # path up to the number: numbers are consecutive only within a series
    number: int
    image: str


def write_release(checkout: Path, directory: Path, *, run_length: int = 4, test_list: str = "auto") -> bool:
    """Converts a checkout of GroceryStoreDataset into a release with splits train and test, atomically.

    Runs longer than `run_length` are cut into equal parts: with run_length=4, photos 1 to 5, 8 and 9 give (1 2 3) (4 5)
    (8 9). A photo's number is its frame number in a video, and its time in seconds in a live. Both splits contain all
    pages, with the same ids; the ids of clips are unique. The test photos are those of val.txt or test.txt; "auto" is
    test.txt if the checkout has it.

    Returns whether the release was written; False if it already exists.
    """
    if run_length < 1:
        raise ValueError(f"run_length is {run_length}, but a clip has at least 1 photo")
    data, directory = Path(checkout) / "dataset", Path(directory).absolute()
    if not (data / "classes.csv").is_file():
        raise FileNotFoundError(f"no dataset/classes.csv in {checkout}: is it GroceryStoreDataset?")
    test_name = _test_list(data, test_list)
    pages = _read_pages(data)
    classes = {page.product_id for page in pages}
    photos = {"train": _read_photos(data / "train.txt", classes), "test": _read_photos(data / test_name, classes)}
    images = [source.image for source in (*pages, *photos["train"], *photos["test"])]
    record = {"run_length": run_length, "test_list": test_name, "source": _fingerprint(data, pages, images)}
    if is_finished(directory, RECORD, record, kind="a grocery release"):
        return False
    with atomic_folder(directory) as folder:
        (folder / "images").mkdir()
        for image in images:
            shutil.copyfile(data / image, folder / "images" / _image_name(image))
        counts, first_id = {}, 0
        for split, prefix in PREFIXES.items():
            runs = _runs(photos[split], run_length)
            counts[prefix.rstrip("_")] = _write_split(folder, prefix, pages, runs, first_id=first_id)
            first_id += len(runs)
        (folder / RECORD).write_text(json.dumps(record | {"counts": counts}, indent=2) + "\n")
    return True


def _test_list(data: Path, choice: str) -> str:
    if choice not in TEST_LISTS:
        raise ValueError(f"test_list is {choice!r}, but must be one of {', '.join(TEST_LISTS)}")
    if choice == "auto":
        choice = "test" if (data / "test.txt").is_file() else "val"
    if not (data / f"{choice}.txt").is_file():
        raise FileNotFoundError(f"no {choice}.txt in {data}: choose another --test_list")
    return f"{choice}.txt"


def _read_pages(data: Path) -> list[_Page]:
    table = data / "classes.csv"
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{table}, line 1: no column {', '.join(map(repr, missing))}")
        rows = [(reader.line_num, *(row[column] or "" for column in _COLUMNS)) for row in reader]
    pages, errors = {}, []
    for line, name, number, image, description in rows:
        with _collect_error(errors, table, line):
            product_id = _class_id(number)
            if product_id in pages:
                raise ValueError(f"class {product_id} is repeated")
            text = f"{name.strip().replace('-', ' ')}. {_find_file(data, description).read_text(encoding='utf-8')}"
            pages[product_id] = _Page(product_id, " ".join(text.split()), _find_image(data, image))
    _raise_errors(errors)
    return [pages[product_id] for product_id in sorted(pages)]


def _read_photos(photo_list: Path, classes: set[int]) -> list[_Photo]:
    photos, errors = set(), []
    for line, row in enumerate(photo_list.read_text(encoding="utf-8").splitlines(), start=1):
        with _collect_error(errors, photo_list, line):
            if not row.strip():
                continue
            photo = _read_photo(photo_list.parent, row)
            if photo.product_id not in classes:
                raise ValueError(f"class {photo.product_id} is not in classes.csv")
            if photo in photos:
                raise ValueError(f"{photo.image} is repeated")
            photos.add(photo)
    _raise_errors(errors)
    return sorted(photos)


def _read_photo(data: Path, row: str) -> _Photo:
    fields = row.split(",")
    if len(fields) != 3:
        raise ValueError(f"{len(fields)} fields instead of photo, class, coarse class: {row!r}")
    image = _find_image(data, fields[0])
    numbered = _NUMBERED.fullmatch(image)
    if numbered is None:
        raise ValueError(f"the name of the photo does not end with a number: {image}")
    return _Photo(_class_id(fields[1]), numbered[1], int(numbered[2]), image)


@contextlib.contextmanager
def _collect_error(errors: list[str], path: Path, line: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        errors.append(f"{path}, line {line}: {error}")


def _raise_errors(errors: list[str]) -> None:
    if errors:
        more = [f"and {len(errors) - _ERRORS_SHOWN} more"] if len(errors) > _ERRORS_SHOWN else []
        raise ValueError("\n".join([*errors[:_ERRORS_SHOWN], *more]))


def _class_id(text: str) -> int:
    if re.fullmatch(r"[0-9]+", text.strip()) is None:
        raise ValueError(f"class {text.strip()!r} is not a whole number")
    return int(text)


def _find_image(data: Path, path: str) -> str:
    if not path.strip().lower().endswith((".jpg", ".jpeg", ".png")):
        raise ValueError(f"{path.strip()!r} is not a .jpg, .jpeg or .png file")
    return _find_file(data, path).relative_to(data).as_posix()


def _find_file(data: Path, path: str) -> Path:
    """Returns the path of a listed file, which must be inside `dataset/`."""
    inside = PurePosixPath(path.strip().lstrip("/"))  # paths in classes.csv start with "/"
    if ".." in inside.parts:
        raise ValueError(f"{path.strip()!r} is outside the dataset")
    if not (data / inside).is_file():
        raise ValueError(f"{inside} is not in the checkout")
    return data / inside


def _fingerprint(data: Path, pages: Iterable[_Page], images: Iterable[str]) -> str:
    """Hashes page texts, image paths and image sizes; reading all photos would take too long."""
    lines = [f"{page.product_id} {page.text}" for page in pages]
    lines += [f"{image} {(data / image).stat().st_size}" for image in images]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _image_name(image: str) -> str:
    """Returns a reproducible name that, unlike the path, does not reveal the product."""
    return hashlib.sha256(image.encode()).hexdigest()[:32] + PurePosixPath(image).suffix.lower()


def _runs(photos: Sequence[_Photo], run_length: int) -> list[tuple[_Photo, ...]]:
    """Splits photos into runs of consecutive numbers, and long runs into equal parts."""

    def run_key(indexed: tuple[int, _Photo]) -> tuple[int, str, int]:
        index, photo = indexed  # number - index is constant while numbers are consecutive
        return photo.product_id, photo.series, photo.number - index

    runs = []
    for _, group in itertools.groupby(enumerate(photos), key=run_key):
        run = tuple(photo for _, photo in group)
        parts = -(-len(run) // run_length)
        cuts = [-(-len(run) * part // parts) for part in range(parts + 1)]
        runs += [run[first:last] for first, last in itertools.pairwise(cuts)]
    return runs


def _write_split(
    directory: Path, prefix: str, pages: Sequence[_Page], runs: Sequence[tuple[_Photo, ...]], *, first_id: int
) -> dict[str, int]:
    """Writes the nine files of a split, with clips numbered from `first_id`; returns domain → number of items."""
    # Domain → (product, text, [fields of a frame between item id and line end, …]) by item id.
    items = {"page": {i: (page.product_id, page.text, [_image_name(page.image)]) for i, page in enumerate(pages)}}
    for domain, clips, step in (("video", runs[0::2], 1), ("live", runs[1::2], 1000)):
        items[domain] = {
            i: (run[0].product_id, NO_TEXT, [f"{photo.number * step}, {_image_name(photo.image)}" for photo in run])
            for i, run in enumerate(clips, start=first_id)
        }
    for domain, names in FILES.items():
        rows = (
            [f"{product}, {i}\n" for i, (product, _, _) in items[domain].items()],
            [f"{i}, {text}\n" for i, (_, text, _) in items[domain].items()],
            [f"{i}, {frame}\n" for i, (_, _, frames) in items[domain].items() for frame in frames],
        )
        for name, lines in zip(names, rows, strict=True):
            (directory / f"{prefix}{name}.txt").write_text("".join(lines), encoding="utf-8", newline="\n")
    return {domain: len(of_domain) for domain, of_domain in items.items()}


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("checkout", None, "Folder of the GroceryStoreDataset checkout.", required=True)
    flags.DEFINE_string("out", None, "Folder of the release.", required=True)
    flags.DEFINE_integer("run_length", 4, "Maximum number of photos per clip.", lower_bound=1)
    flags.DEFINE_enum("test_list", "auto", TEST_LISTS, "Test photos; auto: test.txt if present, otherwise val.txt.")


def main() -> None:
    out = Path(FLAGS.out)
    written = write_release(Path(FLAGS.checkout), out, run_length=FLAGS.run_length, test_list=FLAGS.test_list)
    record = json.loads((out / RECORD).read_text())
    print(f"{'Wrote' if written else 'Nothing to do, already there:'} {out}, tested on {record['test_list']}")
    for prefix, counts in record["counts"].items():
        print(f"  {prefix}: " + ", ".join(f"{count} {domain}s" for domain, count in counts.items()))


if __name__ == "__main__":
    define_flags()
    cli.run("grocery", main)

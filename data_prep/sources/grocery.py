"""GroceryStoreDataset as a release: a small public stand-in for ROPE, with real photos.

One page per class: its studio image, with name and description as text. Shop photos with numbers that follow
each other usually show one scene; such a run is a clip, in turn a video and a live. Clips have no text.

    python -m data_prep.sources.grocery --checkout=GroceryStoreDataset --out=/data/grocery
"""

import csv
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from absl import app, flags

from data_prep.catalog.release import FILES, NO_TEXT, PREFIXES

TEST_LISTS = ("auto", "val", "test")
RECORD = "grocery.json"  # Written into the release: how it was made, and what it holds.

_COLUMNS = ("Class Name (str)", "Class ID (int)", "Iconic Image Path (str)", "Product Description Path (str)")
_NUMBERED = re.compile(r"(.*?)(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
_FAULTS_SHOWN = 10


@dataclass(frozen=True)
class _Page:
    product_id: int
    text: str
    image: str  # As every path here: inside `dataset/`, with "/" between its parts.


@dataclass(frozen=True, order=True)
class _Photo:
    product_id: int
    series: str  # The path up to the number: only numbers of the same series follow each other.
    number: int
    image: str


def write_release(checkout: Path, directory: Path, *, run_length: int = 4, test_list: str = "auto") -> bool:
    """Writes a checkout of GroceryStoreDataset as the release `directory`: splits train and test, and images.

    All runs of a split, by product and number, become videos and lives in turn: a product with two runs has
    both, and a split has as many videos as lives, or one more. A stretch without a gap that is longer than
    `run_length` is cut into equal parts: with run_length=4, photos 1 to 5, 8 and 9 give (1 2 3) (4 5) (8 9).
    A photo's number is a video's frame number; a live counts it as seconds, in milliseconds. Both splits have
    all pages, under the same ids; the ids of clips are never repeated.

    Args:
      checkout: the folder that holds `dataset/`.
      directory: written under another name and renamed when whole. Nothing is done where it is whole already.
      run_length: most photos a clip.
      test_list: which photos make the test split: "val", "test", or "auto": test.txt where the checkout has
        it, val.txt otherwise.

    Returns:
      Whether the release was written now: False where it already stood there.

    Raises:
      FileNotFoundError: `checkout` is none, or has not the list that was asked for.
      FileExistsError: `directory` holds something else, or a release made from other photos or options.
      ValueError: an option out of range, or faulty lines, which the message names.
    """
    if run_length < 1:
        raise ValueError(f"run_length is {run_length}, but a clip has at least 1 photo")
    data, directory = Path(checkout) / "dataset", Path(directory).absolute()
    if not (data / "classes.csv").is_file():
        raise FileNotFoundError(f"no dataset/classes.csv in {checkout}: is it GroceryStoreDataset?")
    test_name = _test_list(data, test_list)
    pages = _read_pages(data)
    known = {page.product_id for page in pages}
    train, test = (_read_photos(data / name, known) for name in ("train.txt", test_name))
    images = [source.image for source in (*pages, *train, *test)]
    record = {"run_length": run_length, "test_list": test_name, "source": _digest(data, pages, images)}
    if _already_written(directory, record):
        return False
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # What a killed run left.
    (partial / "images").mkdir(parents=True)
    for image in images:
        shutil.copyfile(data / image, partial / "images" / _image_name(image))
    train_runs, test_runs = _runs(train, run_length), _runs(test, run_length)
    counts = {
        "training": _write_split(partial, "train", pages, train_runs, first_id=0),
        "test": _write_split(partial, "test", pages, test_runs, first_id=len(train_runs)),
    }
    (partial / RECORD).write_text(json.dumps(record | {"counts": counts}, indent=2) + "\n")
    partial.rename(directory)
    return True


def _test_list(data: Path, choice: str) -> str:
    if choice not in TEST_LISTS:
        raise ValueError(f"test_list is {choice!r}, but must be one of {', '.join(TEST_LISTS)}")
    if choice == "auto":
        choice = "test" if (data / "test.txt").is_file() else "val"
    if not (data / f"{choice}.txt").is_file():
        raise FileNotFoundError(f"no {choice}.txt in {data}: choose another --test_list")
    return f"{choice}.txt"


def _already_written(directory: Path, record: Mapping[str, object]) -> bool:
    """Whether `directory` is a release with this record; an error where it is anything but that or free."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    remedy = "delete it or write to another folder"
    if not (directory / RECORD).is_file():
        raise FileExistsError(f"{directory} has no {RECORD}, so it is no grocery release: {remedy}")
    found = json.loads((directory / RECORD).read_text())
    changed = [f"{key} {found[key]!r}, now {value!r}" for key, value in record.items() if found[key] != value]
    if changed:
        raise FileExistsError(f"{directory} was made with other options ({'; '.join(changed)}): {remedy}")
    return True


def _read_pages(data: Path) -> list[_Page]:
    table = data / "classes.csv"
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{table}, line 1: no column {', '.join(map(repr, missing))}")
        rows = [(reader.line_num, *(row[column] or "" for column in _COLUMNS)) for row in reader]
    pages, faults = {}, []
    for line, name, number, image, description in rows:
        try:
            product_id = _natural(number)
            if product_id in pages:
                raise ValueError(f"class {product_id} was listed before")
            title = name.strip().replace("-", " ")
            text = _file(data, description).read_text(encoding="utf-8")
            page_text = " ".join(f"{title}. {text}".split())
            pages[product_id] = _Page(product_id, page_text, _image(data, image))
        except ValueError as fault:
            faults.append(f"{table}, line {line}: {fault}")
    _raise_faults(faults)
    return sorted(pages.values(), key=lambda page: page.product_id)


def _read_photos(photo_list: Path, known: set[int]) -> list[_Photo]:
    photos, faults = set(), []
    for line, row in enumerate(photo_list.read_text(encoding="utf-8").splitlines(), start=1):
        if not row.strip():
            continue
        try:
            photo = _read_photo(photo_list.parent, row, known)
            if photo in photos:
                raise ValueError(f"{photo.image} was listed before")
            photos.add(photo)
        except ValueError as fault:
            faults.append(f"{photo_list}, line {line}: {fault}")
    _raise_faults(faults)
    return sorted(photos)


def _read_photo(data: Path, row: str, known: set[int]) -> _Photo:
    fields = row.split(",")
    if len(fields) != 3:
        raise ValueError(f"{len(fields)} fields, but wanted photo, class, coarse class: {row!r}")
    product_id = _natural(fields[1])
    if product_id not in known:
        raise ValueError(f"class {product_id} is not in classes.csv")
    image = _image(data, fields[0])
    numbered = _NUMBERED.fullmatch(image)
    if numbered is None:
        raise ValueError(f"no number at the end of the photo's name: {image}")
    return _Photo(product_id, numbered[1], int(numbered[2]), image)


def _natural(text: str) -> int:
    if re.fullmatch(r"[0-9]+", text.strip()) is None:
        raise ValueError(f"class {text.strip()!r} is no whole number")
    return int(text)


def _image(data: Path, path: str) -> str:
    if not path.strip().lower().endswith((".jpg", ".jpeg", ".png")):
        raise ValueError(f"{path.strip()!r} is no .jpg, .jpeg or .png")
    return _file(data, path).relative_to(data).as_posix()


def _file(data: Path, path: str) -> Path:
    """The file a list means: the lists are data, so their paths must not lead out of `dataset/`."""
    inside = PurePosixPath(path.strip().lstrip("/"))  # classes.csv has a "/" in front, the others have not.
    if ".." in inside.parts:
        raise ValueError(f"{path.strip()!r} leads out of the dataset")
    if not (data / inside).is_file():
        raise ValueError(f"{inside} is not in the checkout")
    return data / inside


def _raise_faults(faults: Sequence[str]) -> None:
    if faults:
        more = [f"and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
        raise ValueError("\n".join([*faults[:_FAULTS_SHOWN], *more]))


def _digest(data: Path, pages: Iterable[_Page], images: Iterable[str]) -> str:
    """Tells two checkouts apart without reading their photos: page texts, image paths and image sizes."""
    lines = [f"{page.product_id} {page.text}" for page in pages]
    lines += [f"{image} {(data / image).stat().st_size}" for image in images]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _image_name(image: str) -> str:
    """A name that tells nothing of the product, unlike the path, and is the same at each run."""
    return hashlib.sha256(image.encode()).hexdigest()[:32] + PurePosixPath(image).suffix.lower()


def _runs(photos: Sequence[_Photo], run_length: int) -> list[tuple[_Photo, ...]]:
    """Clips of at most `run_length` photos: stretches without a gap, the long ones cut into equal parts."""

    def stretch(indexed: tuple[int, _Photo]) -> tuple[int, str, int]:
        index, photo = indexed  # number − index is constant while the numbers follow each other.
        return photo.product_id, photo.series, photo.number - index

    runs = []
    for _, group in itertools.groupby(enumerate(photos), key=stretch):
        whole = tuple(photo for _, photo in group)
        parts = -(-len(whole) // run_length)
        cuts = [-(-len(whole) * part // parts) for part in range(parts + 1)]
        runs += [whole[first:last] for first, last in itertools.pairwise(cuts)]
    return runs


def _write_split(
    directory: Path, split: str, pages: Sequence[_Page], runs: Sequence[tuple[_Photo, ...]], *, first_id: int
) -> dict[str, int]:
    """Writes the nine files of a split, its clips numbered from `first_id`. Returns the items per domain."""
    clips = {"video": runs[0::2], "live": runs[1::2]}
    tables = {
        "page": (
            [f"{page.product_id}, {page_id}" for page_id, page in enumerate(pages)],
            [f"{page_id}, {page.text}" for page_id, page in enumerate(pages)],
            [f"{page_id}, {_image_name(page.image)}" for page_id, page in enumerate(pages)],
        )
    }
    for domain, step in (("video", 1), ("live", 1000)):
        items = list(enumerate(clips[domain], start=first_id))
        tables[domain] = (
            [f"{run[0].product_id}, {item_id}" for item_id, run in items],
            [f"{item_id}, {NO_TEXT}" for item_id, _ in items],
            [
                f"{item_id}, {photo.number * step}, {_image_name(photo.image)}"
                for item_id, run in items
                for photo in run
            ],
        )
    for domain, names in FILES.items():
        for name, rows in zip(names, tables[domain], strict=True):
            text = "".join(f"{row}\n" for row in rows)
            (directory / f"{PREFIXES[split]}{name}.txt").write_text(text, encoding="utf-8", newline="\n")
    return {"page": len(pages)} | {domain: len(items) for domain, items in clips.items()}


def main(_: Sequence[str]) -> None:
    options, out = flags.FLAGS, Path(flags.FLAGS.out)
    try:
        written = write_release(Path(options.checkout), out, run_length=options.run_length, test_list=options.test_list)
    except (OSError, ValueError) as error:
        raise SystemExit(f"grocery: {error}") from error
    record = json.loads((out / RECORD).read_text())
    print(f"{'Wrote' if written else 'Nothing to do, already there:'} {out}, tested on {record['test_list']}")
    for prefix, counts in record["counts"].items():
        print(f"  {prefix}: " + ", ".join(f"{count} {domain}s" for domain, count in counts.items()))


if __name__ == "__main__":  # Flags only here: other commands have an --out too, and tests import them all.
    flags.DEFINE_string("checkout", None, "Folder of the GroceryStoreDataset checkout.", required=True)
    flags.DEFINE_string("out", None, "Folder to write the release to.", required=True)
    flags.DEFINE_integer("run_length", 4, "Most photos a clip.", lower_bound=1)
    flags.DEFINE_enum("test_list", "auto", TEST_LISTS, "Test photos; auto: test.txt if present, else val.txt.")
    app.run(main)

import collections
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from data_prep.sources import grocery

ROOT = Path(__file__).parents[3]
HEADER = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
HEADER += "Iconic Image Path (str),Product Description Path (str)\n"
CLASSES = ("Red-Apple", "Oat-Milk", "Leek")
ICONIC = "iconic-images-and-descriptions"


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def photo_name(split: str, product: int, number: int) -> str:
    return f"{split}/Food/{CLASSES[product]}/{CLASSES[product]}_{number:03d}.jpg"


def put_photos(data: Path, split: str, numbers: dict[int, list[int]]) -> None:
    names = [(photo_name(split, product, n), product) for product, ns in numbers.items() for n in ns]
    for name, _ in names:
        put(data / name, f"photo {name}")
    put(data / f"{split}.txt", "".join(f"{name}, {product}, 7\n" for name, product in names))


@pytest.fixture
def checkout(tmp_path):
    """A checkout with three classes. The content of each image is its path."""
    data = tmp_path / "checkout" / "dataset"
    table = HEADER
    for product, name in enumerate(CLASSES):
        image, text = f"{ICONIC}/{name}/{name}_Iconic.jpg", f"{ICONIC}/{name}/{name}_Description.txt"
        table += f"{name},{product},Food,7,/{image},/{text}\n"
        put(data / image, f"photo {image}")
        put(data / text, f"Good, {name}\nfor pölsa.\n\n")
    put(data / "classes.csv", table)
    put_photos(data, "train", {0: [5, 1, 2, 3, 4, 8, 9], 1: [1, 2, 3], 2: [1, 3]})
    put_photos(data, "val", {0: [1, 2], 2: [4, 5, 6]})
    return tmp_path / "checkout"


@pytest.fixture(scope="session")
def real_checkout(tmp_path_factory):
    """The published data at 128 px if available, otherwise a synthetic checkout of similar size."""
    folder = tmp_path_factory.mktemp("grocery")
    archive = os.environ.get("COPE_GROCERY_TAR", ROOT.parent / "shared" / "data" / "grocery-128.tar")
    if Path(archive).is_file():
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return folder / "GroceryStoreDataset"
    rng, table, lists = random.Random(0), HEADER, {"train": "", "val": ""}
    for product in range(81):
        put(folder / f"dataset/{ICONIC}/{product}.jpg", f"{product}")
        put(folder / f"dataset/{ICONIC}/{product}.txt", f"Class {product}.\n")
        table += f"Kind-{product},{product},A,0,/{ICONIC}/{product}.jpg,/{ICONIC}/{product}.txt\n"
        for split, most in (("train", 40), ("val", 6)):
            for number in rng.sample(range(1, 50), rng.randint(most // 2, most)):
                put(folder / f"dataset/{split}/{product}_{number:03d}.jpg", f"{split} {product} {number}")
                lists[split] += f"{split}/{product}_{number:03d}.jpg, {product}, 0\n"
    put(folder / "dataset/classes.csv", table)
    for split, photos in lists.items():
        put(folder / f"dataset/{split}.txt", photos)
    return folder


def rows(release: Path, name: str, fields: int) -> list[tuple[str, ...]]:
    lines = (release / name).read_text(encoding="utf-8").splitlines()
    return [tuple(field.strip() for field in line.split(",", fields - 1)) for line in lines]


def clips(release: Path, split: str, domain: str) -> list[tuple[int, list[tuple[int, bytes]]]]:
    """Returns (product, [(frame number or time, image bytes), …]) of each clip in the order of ids."""
    frames = collections.defaultdict(list)
    for item, time, image in rows(release, f"{split}_{domain}_{'frames' if domain == 'video' else 'clips'}.txt", 3):
        frames[int(item)].append((int(time), (release / "images" / image).read_bytes()))
    pairs = [(int(item), int(product)) for product, item in rows(release, f"{split}_product_{domain}s_pair.txt", 2)]
    assert len(frames) == len(pairs) == len(dict(pairs))
    return [(product, frames[item]) for item, product in sorted(pairs)]


def clip(split: str, product: int, numbers: list[int], step: int = 1) -> tuple[int, list[tuple[int, bytes]]]:
    return product, [(n * step, f"photo {photo_name(split, product, n)}".encode()) for n in numbers]


def test_runs_become_videos_and_lives_alternately(checkout, tmp_path):
    out = tmp_path / "out"
    assert grocery.write_release(checkout, out, run_length=4)
    # Runs in order: 0: 1-3, 4-5, 8-9; 1: 1-3; 2: 1, 3.
    assert clips(out, "training", "video") == [
        clip("train", 0, [1, 2, 3]),
        clip("train", 0, [8, 9]),
        clip("train", 2, [1]),
    ]
    assert clips(out, "training", "live") == [
        clip("train", 0, [4, 5], 1000),
        clip("train", 1, [1, 2, 3], 1000),
        clip("train", 2, [3], 1000),
    ]
    assert clips(out, "test", "video") == [clip("val", 0, [1, 2])]
    assert clips(out, "test", "live") == [clip("val", 2, [4, 5, 6], 1000)]
    ids = [int(item) for split in ("training", "test") for _, item in rows(out, f"{split}_product_videos_pair.txt", 2)]
    assert len(ids) == len(set(ids))
    record = json.loads((out / grocery.RECORD).read_text())
    assert record["counts"]["training"] == {"page": 3, "video": 3, "live": 3}
    assert (record["run_length"], record["test_list"]) == (4, "val.txt")


def test_both_splits_have_the_pages_of_all_products(checkout, tmp_path):
    out = tmp_path / "out"
    grocery.write_release(checkout, out)
    for split in ("training", "test"):
        assert len(list(out.glob(f"{split}_*.txt"))) == 9
        products = {page: int(product) for product, page in rows(out, f"{split}_product_pages_pair.txt", 2)}
        assert sorted(products.values()) == [0, 1, 2]
        titles = {products[page]: title for page, title in rows(out, f"{split}_page_titles.txt", 2)}
        assert titles[1] == "Oat Milk. Good, Oat-Milk for pölsa."
        images = {products[page]: image for page, image in rows(out, f"{split}_page_images.txt", 2)}
        expected = f"photo {ICONIC}/Leek/Leek_Iconic.jpg".encode()
        assert (out / "images" / images[2]).read_bytes() == expected
        for domain in ("video", "live"):
            texts = rows(out, f"{split}_{domain}_asrs.txt", 2)
            assert len(texts) == len(clips(out, split, domain))
            assert {text for _, text in texts} == {"空"}


def test_image_names_do_not_reveal_the_product(checkout, tmp_path):
    out = tmp_path / "out"
    grocery.write_release(checkout, out)
    names = [path.name for path in (out / "images").iterdir()]
    assert len(names) == 3 + 12 + 5
    assert all(re.fullmatch(r"[0-9a-f]{32}\.jpg", name) for name in names)


def test_the_second_run_does_nothing(checkout, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "out.writing" / "images").mkdir(parents=True)
    put(tmp_path / "out.writing" / "images" / "left_by_an_interrupted_run.jpg", "")
    assert grocery.write_release(checkout, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not grocery.write_release(checkout, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert len(before) == 18 + 1 + 1 + 20
    assert not (tmp_path / "out.writing").exists()
    with pytest.raises(ValueError, match=r"other options \(run_length: 4 there, 2 given\); choose another --out"):
        grocery.write_release(checkout, out, run_length=2)
    put(checkout / "dataset" / photo_name("train", 1, 2), "another photo")
    with pytest.raises(ValueError, match=r"other options \(source"):
        grocery.write_release(checkout, out)


def test_other_folders_are_not_touched(checkout, tmp_path):
    put(tmp_path / "out" / "thesis.txt", "")
    with pytest.raises(ValueError, match=r"not a grocery release, because it has no grocery\.json"):
        grocery.write_release(checkout, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("choice", "has_test", "listed"),
    [("auto", False, "val"), ("auto", True, "test"), ("val", True, "val"), ("test", True, "test")],
)
def test_the_list_of_test_photos_can_be_chosen(checkout, tmp_path, choice, has_test, listed):
    if has_test:
        put_photos(checkout / "dataset", "test", {1: [3]})
    grocery.write_release(checkout, tmp_path / "out", test_list=choice)
    expected = {"val": clip("val", 0, [1, 2]), "test": clip("test", 1, [3])}[listed]
    assert clips(tmp_path / "out", "test", "video") == [expected]


def test_invalid_options(checkout, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no test\.txt in .*choose another --test_list"):
        grocery.write_release(checkout, tmp_path / "out", test_list="test")
    with pytest.raises(ValueError, match="test_list is 'dev', but must be one of auto, val, test"):
        grocery.write_release(checkout, tmp_path / "out", test_list="dev")
    with pytest.raises(ValueError, match="run_length is 0"):
        grocery.write_release(checkout, tmp_path / "out", run_length=0)
    with pytest.raises(FileNotFoundError, match=r"no dataset/classes\.csv in .*nowhere"):
        grocery.write_release(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


GOOD = photo_name("train", 0, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/Food/Leek/Leek_099.jpg, 2, 7", "train/Food/Leek/Leek_099.jpg is not in the checkout"),
        (GOOD, "1 fields instead of photo, class, coarse class"),
        (f"{GOOD}, 0, 7", "is repeated"),
        (f"{GOOD}, zero, 7", "class 'zero' is not a whole number"),
        (f"{GOOD}, 3, 7", "class 3 is not in classes.csv"),
        ("../secret_1.jpg, 0, 7", "'../secret_1.jpg' is outside the dataset"),
        ("/etc/passwd_1.jpg, 0, 7", "etc/passwd_1.jpg is not in the checkout"),
        ("classes.csv, 0, 7", "'classes.csv' is not a .jpg, .jpeg or .png"),
        (f"{ICONIC}/Leek/Leek_Iconic.jpg, 0, 7", "the name of the photo does not end with a number"),
    ],
)
def test_invalid_photo_lines(checkout, tmp_path, line, message):
    put(checkout / "secret_1.jpg", "secret")
    with (checkout / "dataset/train.txt").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        grocery.write_release(checkout, tmp_path / "out")
    assert re.search(r"dataset/train\.txt, line 14: ", str(raised.value))  # 12 photos and an empty line
    assert not (tmp_path / "out").exists()


def test_all_errors_are_listed(checkout, tmp_path):
    shutil.rmtree(checkout / "dataset" / "train")
    with pytest.raises(ValueError, match=r"(?s)line 1: .*line 10: .*\nand 2 more$"):
        grocery.write_release(checkout, tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Class ID (int),", "Class ID,", "line 1: no column 'Class ID (int)'"),
        ("Oat-Milk,1,", "Oat-Milk,0,", "line 3: class 0 is repeated"),
        ("Leek_Description", "Leek_Text", f"line 4: {ICONIC}/Leek/Leek_Text.txt is not in the checkout"),
        (
            "Leek_Iconic.jpg",
            "Leek_Iconic.gif",
            "line 4: '/iconic-images-and-descriptions/Leek/Leek_Iconic.gif' is not a .jpg",
        ),
    ],
)
def test_invalid_classes(checkout, tmp_path, old, new, message):
    table = checkout / "dataset/classes.csv"
    put(table, table.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=re.escape(f"classes.csv, {message}")):
        grocery.write_release(checkout, tmp_path / "out")


def test_the_command_writes_a_release_once(checkout, tmp_path):
    command = [sys.executable, "-m", "data_prep.sources.grocery", f"--out={tmp_path / 'out'}", "--run_length=1"]
    for status in ("Wrote", "Nothing to do, already there:"):
        done = subprocess.run([*command, f"--checkout={checkout}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{status} {tmp_path / 'out'}, tested on val.txt\n")
        assert "training: 3 pages, 6 videos, 6 lives" in done.stdout
    failed = subprocess.run([*command, f"--checkout={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("grocery: no dataset/classes.csv")


@pytest.mark.parametrize("run_length", [1, 4])
def test_every_real_photo_is_in_one_clip(real_checkout, tmp_path, run_length):
    """Clips are runs, and the domains are balanced."""
    out, data = tmp_path / "out", real_checkout / "dataset"
    grocery.write_release(real_checkout, out, run_length=run_length)
    for split, name in (("training", "train"), ("test", "val")):
        listed = collections.Counter()
        for line in (data / f"{name}.txt").read_text().splitlines():
            path, product, _ = line.split(",")
            number = int(re.search(r"(\d+)\.jpg$", path)[1])
            listed[int(product), number, (data / path).read_bytes()] += 1
        found, domains = collections.Counter(), collections.defaultdict(list)
        for domain, step in (("video", 1), ("live", 1000)):
            for product, frames in clips(out, split, domain):
                numbers = [time // step for time, _ in frames]
                assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
                assert len(numbers) <= run_length
                found.update((product, time // step, image) for time, image in frames)
                domains[product].append(domain)
        assert found == listed
        counts = collections.Counter(domain for both in domains.values() for domain in both)
        assert counts["video"] - counts["live"] in (0, 1)
        assert all(set(both) == {"video", "live"} for both in domains.values() if len(both) > 1)
        assert len(rows(out, f"{split}_product_pages_pair.txt", 2)) == 81

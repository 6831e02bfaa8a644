"""Amazon Berkeley Objects: a download in its exact layout, as folders and as tar files."""

import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_prep.catalog.files import Catalog
from data_prep.sources.abo import group_products, parse_listing, write_table


def text(value, tag="en_US"):
    return [{"language_tag": tag, "value": value}]


def listing(item, main="", others=(), spin="", marketplace="amazon.com", **fields):
    known = {"item_id": item, "domain_name": marketplace, "main_image_id": main, "other_image_id": list(others)}
    known |= {"spin_id": spin} if spin else {}
    return {name: value for name, value in (known | fields).items() if value}


LISTINGS = [
    listing("B1", "m1", ["o1", "o2"], "s1", item_name=text("Oak chair"), brand=text("Rivet"), color=text("oak")),
    listing("B1", "m1", ["o1"], marketplace="amazon.de", item_name=text("Stuhl aus Eiche", "de_DE")),
    listing("B2", "m2", ["o3"], "s1", item_name=text("Stool &trade;")),  # shares the spin of B1
    listing("B3", "m3", ["o3", "thin"], item_name=text("Lampe", "de_DE"), product_type=[{"value": "TABLE_LAMP"}]),
    listing("B4", "m3", item_name=text("Lamp")),  # shares the main image of B3
    listing("B5", "gone", ["m5"], "s9", item_name=text("Mug")),
]
SIDES = {"o1": (30, 40), "thin": (500, 30)}
NAMES = ("m1", "m2", "m3", "m5", "o1", "o2", "o3", "o6", "thin")


def picture(name, suffix, height=40, width=30):
    file = io.BytesIO()
    value = sum(map(ord, name)) % 256
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(file, "PNG" if suffix == ".png" else "JPEG")
    return file.getvalue()


SPLIT = lzma.compress(
    b"split_set,class_id,path,image_type\ntrain,B3,m/m3.jpg,catalog\ntest-query,B1,s/s1/s1_02.jpg,render\n"
)


@pytest.fixture(scope="module")
def files():
    """Path → content of a download with some faults among many listings."""
    padding = [listing("C", "c", ["o6"], "s2", item_name=text("Cup"))]
    padding += [listing(f"C{i}", f"c{i}", item_name=text(f"Cup {i}")) for i in range(200)]
    lines = [json.dumps(one, ensure_ascii=False) for one in (*LISTINGS, *padding, LISTINGS[0])] + ["{broken"]
    images = "image_id,height,width,path\n"
    content = {}
    for name in (*NAMES, "c", *(f"c{i}" for i in range(200))):
        height, width = SIDES.get(name, (40, 30))
        path = f"{name[:1]}/{name}{'.png' if name == 'o2' else '.jpg'}"
        images += f"{name},{height},{width},{path}\n"
        content[f"images/small/{path}"] = picture(name, path[-4:], height, width)
    spins = "spin_id,azimuth,image_id,height,width,path\n"
    for spin, turn in (("s1", 2), ("s2", 0), ("s1", 0), ("s1", 1)):
        path = f"s/{spin}/{spin}_{turn:02d}.jpg"
        spins += f"{spin},{24 * turn},{spin}_{turn},40,30,{path}\n"
        content[f"spins/original/{path}"] = picture(path, ".jpg")
    for part, some in (("0", lines[:3]), ("f", lines[3:])):
        content[f"listings/metadata/listings_{part}.json.gz"] = gzip.compress("\n".join(some).encode())
    content["images/metadata/images.csv.gz"] = gzip.compress(images.encode())
    content["spins/metadata/spins.csv.gz"] = gzip.compress(spins.encode())
    return content


def unpack(files, folder):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def pack(files, folder):
    folder.mkdir()
    archives = {"listings": "abo-listings.tar", "images": "abo-images-small.tar", "spins": "abo-spins.tar"}
    for part, name in archives.items():
        with tarfile.open(folder / name, "w") as tar:
            for path, content in files.items():
                if path.startswith(part):
                    member = tarfile.TarInfo(f"./{path}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def rows(files, tmp_path_factory):
    """The rows of the table, those of the cups left out, and the counts."""
    folder = unpack(files, tmp_path_factory.mktemp("abo"))
    counts = write_table(folder, folder / "table.jsonl")
    found = map(json.loads, (folder / "table.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in found if not row["product"].startswith("C")], counts


def of(rows, domain):
    return [(row["product"], row["item"], row["image"], row["time"]) for row in rows[0] if row["domain"] == domain]


def test_listings_that_share_an_item_a_spin_or_a_main_image_are_one_product(rows):
    assert {(row["product"], row["item"]) for row in rows[0] if row["domain"] == "page"} == {
        *(("B1", "m1"), ("B1", "m2")),
        ("B3", "m3"),
    }


def test_other_images_are_photos_of_all_their_products(rows):
    names = {(product, item): image for product, item, image, _ in of(rows, "photos")}
    assert names == {
        ("B1", "o1"): "images/small/o/o1.jpg",
        ("B1", "o2"): "images/small/o/o2.png",
        ("B1", "o3"): "images/small/o/o3.jpg",
        ("B3", "o3"): "images/small/o/o3.jpg",
        ("B5", "m5"): "images/small/m/m5.jpg",
    }


def test_spins_are_in_order_of_their_azimuth(rows):
    assert of(rows, "spin") == [("B1", "s1", f"spins/original/s/s1/s1_{i:02d}.jpg", 24 * i) for i in range(3)]


def test_pages_have_names_brands_and_attributes_in_the_best_language(rows):
    texts = {row["item"]: row["text"] for row in rows[0] if row["domain"] == "page"}
    assert texts == {"m1": "Oak chair, Rivet", "m2": "Stool ™", "m3": "Lamp"}


def test_faults_are_counted(rows):
    expected = {"listings": 209, "invalid listings": 1, "repeated listings": 1, "narrow images": 1}
    expected |= {"listings in other languages": 2, "items without images": 3}
    assert {name: rows[1][name] for name in expected} == expected


@pytest.mark.parametrize(("language", "title"), [("de_DE", "Stuhl"), ("de_AT", "Stuhl"), ("ja_JP", "Chair")])
def test_a_missing_language_is_replaced_by_the_nearest(language, title):
    fields = listing("B", item_name=text("Silla", "es_ES") + text("Chair", "en_GB") + text("Stuhl", "de_DE"))
    assert parse_listing(fields, language).text == title


def test_a_chain_of_shared_values_is_one_product():
    chain = [parse_listing(listing(f"B{9 - i}", f"m{i // 2}", spin=f"s{(i + 1) // 2}"), "en_US") for i in range(6)]
    assert group_products(chain) == ["B4"] * 6


def test_products_with_a_test_image_of_multi_view_retrieval_are_test_products(files, tmp_path):
    folder = unpack(files | {"benchmarks/abo-mvr.csv.xz": SPLIT}, tmp_path)
    write_table(folder, tmp_path / "table.jsonl")
    found = map(json.loads, (tmp_path / "table.jsonl").read_text(encoding="utf-8").splitlines())
    splits = {(row["product"], row["split"]) for row in found}
    assert ("B1", "test") in splits
    assert ("B3", "train") in splits
    assert {split for product, split in splits if product != "B1"} == {"train"}
    (tmp_path / "benchmarks/abo-mvr.csv.xz").write_bytes(lzma.compress(b"split_set,class_id,path,image_type\n"))
    with pytest.raises(ValueError, match="has no test images of these listings"):
        write_table(folder, tmp_path / "table.jsonl")


def test_many_invalid_listings_are_an_error(files, tmp_path):
    broken = {"listings/metadata/listings_0.json.gz": gzip.compress(b"[]\n" * 5)}
    with pytest.raises(ValueError, match=r"6 of 2\d\d listings in .* are invalid"):
        write_table(unpack(files | broken, tmp_path), tmp_path / "table.jsonl")


def test_a_folder_without_the_metadata_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither listings/metadata/listings_"):
        write_table(tmp_path, tmp_path / "table.jsonl")


@pytest.mark.parametrize("store", [unpack, pack])
def test_the_command_makes_a_catalog_that_builds(files, tmp_path, run_sh, store):
    folder = store(files, tmp_path / "abo")
    (folder / "abo-mvr.csv.xz").write_bytes(SPLIT)
    (folder / "LICENSE-CC-BY-NC-4.0.txt").write_text("")
    done = run_sh("abo", str(folder), f"--out={tmp_path / 'catalog'}")
    assert done.returncode == 0, done.stderr
    assert "is of an earlier release" in done.stdout
    assert "1 invalid listings" in done.stdout
    assert Catalog(tmp_path / "catalog").domains == {"page": "image", "photos": "image", "spin": "clip"}
    build = [f"--catalog={tmp_path / 'catalog'}", f"--images={folder}", f"--data_dir={tmp_path / 'data'}"]
    done = run_sh("build", *build, "--name=abo")
    assert done.returncode == 0, done.stderr

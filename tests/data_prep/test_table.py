"""Catalogs of tables: formats, ids, splits, rejected rows and the command."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cope_jax.data.collate import check_id
from data_prep.catalog.files import Catalog, Frame, Item, Product
from data_prep.common.domains import DOMAINS
from data_prep.table import build_table_catalog, split_of

BAG, MUG = "SKU-b", "SKU-m"
ITEMS = [
    {
        "split": "train",
        "product": MUG,
        "domain": "page",
        "item": "p2",
        "text": "杯子, 大",
        "images": ["x/1.jpg", "2.jpg"],
    },
    {"split": "train", "product": BAG, "domain": "page", "item": "p1", "text": "包", "images": ["3.jpg"]},
    {"split": "train", "product": MUG, "domain": "video", "item": "30", "text": "", "images": ["z.jpg", "a.jpg"]},
    {"split": "train", "product": BAG, "domain": "video", "item": "30", "text": "说", "images": ["z.jpg", "b.jpg"]},
    {"split": "train", "product": MUG, "domain": "live", "item": "9", "text": "", "images": []},
    {"split": "test", "product": "SKU-a", "domain": "page", "item": "p1", "text": "", "images": ["4.jpg"]},
]
# Ids are numbered in order over both splits: SKU-a, SKU-b, SKU-m and p1, p2. Those of videos and lives are numbers.
# The payload has the ids that were no numbers.
CLIP = (Frame(0, "z.jpg"), Frame(1, "a.jpg"), Frame(2, "b.jpg"))
WANTED = {
    "page": [
        Item(0, "包", (1,), (Frame(0, "3.jpg"),), '{"item":"p1","product":["SKU-b"]}'),
        Item(1, "杯子, 大", (2,), (Frame(0, "x/1.jpg"), Frame(1, "2.jpg")), '{"item":"p2","product":["SKU-m"]}'),
    ],
    "video": [Item(30, "说", (1, 2), CLIP, '{"product":["SKU-b","SKU-m"]}')],
    "live": [Item(9, "", (2,), (), '{"product":["SKU-m"]}')],
}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "1.jpg").touch()
    return folder


def write_table(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                joined = {"images": "|".join(row["images"])} if "images" in row else {}
                writer.writerow(row | joined)
    return path


def build(folder: Path, rows: list[dict], suffix: str = ".jsonl", **options) -> Catalog:
    table = write_table(folder / f"items{suffix}", rows)
    return build_table_catalog(table, folder / "images", folder / "catalog", report=lambda line: None, **options)


def read_rejected(folder: Path) -> list[tuple]:
    with (folder / "rejected.jsonl").open(encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    return [(entry["split"], entry["line"], entry["reason"]) for entry in entries]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("one_row_per_image", [False, True])
def test_all_formats_give_the_same_catalog(tmp_path, images, suffix, one_row_per_image):
    rows = ITEMS
    if one_row_per_image:
        rows = [
            {name: value for name, value in row.items() if name != "images"} | {"image": image}
            for row in ITEMS
            for image in row["images"] or [""]
        ]
    catalog = build(tmp_path, rows, suffix, max_rejected=0)
    assert {domain: list(catalog.items("train", domain)) for domain in WANTED} == WANTED
    assert list(catalog.products("train")) == [
        Product(1, {"page": (0,), "video": (0,), "live": ()}),
        Product(2, {"page": (1,), "video": (0,), "live": (0,)}),
    ]
    [item] = catalog.items("test", "page")
    assert item == Item(0, "", (0,), (Frame(0, "4.jpg"),), '{"item":"p1","product":["SKU-a"]}')
    assert item.own_id == "p1"
    assert pq.read_table(catalog.folder / "ids.parquet").to_pylist() == [
        {"kind": "page", "id": 0, "original": "p1"},
        {"kind": "page", "id": 1, "original": "p2"},
        {"kind": "product", "id": 0, "original": "SKU-a"},
        {"kind": "product", "id": 1, "original": "SKU-b"},
        {"kind": "product", "id": 2, "original": "SKU-m"},
    ]
    assert [reason for _, _, reason in read_rejected(catalog.folder)] == ["item without frames, kept"]


def test_whole_number_ids_are_kept_and_times_order_frames(tmp_path, images):
    shown = {"product": 12, "domain": "live", "item": 7.0}
    rows = [
        shown | {"image": "late.jpg", "time": 1668122889829},
        shown | {"image": "x/1.jpg", "time": 5.0, "text": "a"},
        shown | {"image": "late.jpg", "time": 1668122889829, "text": "a"},
    ]
    catalog = build(tmp_path, rows, test_fraction=0)
    assert catalog.splits == ("train",)
    frames = (Frame(5, "x/1.jpg"), Frame(1668122889829, "late.jpg"))
    assert list(catalog.items("train", "live")) == [Item(7, "a", (12,), frames)]
    assert pq.read_table(catalog.folder / "ids.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("products", "wanted"),
    [((6901234567892, 5), (1, 0)), ((2**31, 5), (0, 1)), ((2**31 - 1, 5), (2**31 - 1, 5))],
)
def test_product_ids_are_numbered_if_one_is_too_large(tmp_path, images, products, wanted):
    shown = {"domain": "page", "images": ["x/1.jpg"]}
    rows = [shown | {"product": product, "item": 10**12 + i} for i, product in enumerate(products)]
    catalog = build(tmp_path, rows, test_fraction=0)
    found = {item.item_id: item.product_ids for item in catalog.items("train", "page")}
    assert found == {10**12 + i: (product,) for i, product in enumerate(wanted)}  # item ids may be larger
    assert all(check_id(product.product_id) in wanted for product in catalog.products("train"))


def test_other_columns_are_carried_along_and_shared_by_the_items_of_a_product(tmp_path, images):
    shown = {"product": 5, "images": ["x/1.jpg"]}
    rows = [
        shown | {"domain": "page", "item": 1, "Title": "Bag", "Variant Price": 1.5, "text_clean": "Red bag"},
        shown | {"domain": "live", "item": 2, "Title": "", "Color": "red"},
        shown | {"domain": "page", "item": 4, "text_clean": "Bag"},
        shown | {"product": 6, "domain": "live", "item": 3, "sizes": ["a", "b"]},
    ]
    catalog = build(tmp_path, rows, test_fraction=0)
    found = {(name, item.item_id): item.payload for name in catalog.domains for item in catalog.items("train", name)}
    assert found == {
        ("page", 1): '{"title":"Bag","variant_price":"1.5","text_clean":"Red bag"}',
        ("page", 4): '{"title":"Bag","variant_price":"1.5","text_clean":"Bag"}',
        ("live", 2): '{"title":"Bag","variant_price":"1.5","color":"red"}',
        ("live", 3): "{}",
    }


def test_the_video_of_an_item_is_not_that_of_others_of_its_product(tmp_path, images):
    rows = [
        {"product": 5, "domain": "live", "item": 1, "title": "Bag", "video": "x/1.jpg", "start": 3, "end": 5},
        {"product": 5, "domain": "video", "item": 2, "video": "x/1.jpg"},
        {"product": 5, "domain": "page", "item": 3, "images": ["x/1.jpg"]},
    ]
    catalog = build(tmp_path, rows, test_fraction=0)
    found = {name: json.loads(next(catalog.items("train", name)).payload) for name in catalog.domains}
    assert found == {
        "page": {"title": "Bag"},
        "video": {"title": "Bag", "video": "x/1.jpg"},
        "live": {"title": "Bag", "video": "x/1.jpg", "start": "3", "end": "5"},
    }


def read_ids(catalog):
    table = pq.read_table(catalog.folder / "ids.parquet").to_pylist()
    return {(row["kind"], row["id"]): row["original"] for row in table}


def products_of_items(catalog, domain):
    """Returns split → item → its products, with the ids of the table."""
    ids = read_ids(catalog)
    return {
        split: {
            ids[domain, item.item_id]: {ids["product", product] for product in item.product_ids}
            for item in catalog.items(split, domain)
        }
        for split in catalog.splits
    }


def test_products_are_split_by_hash(tmp_path, images):
    rows = [{"product": f"p{i}", "item": f"i{i}", "images": ["x/1.jpg"]} for i in range(200)]
    found = products_of_items(build(tmp_path, rows, ".parquet", test_fraction=0.25), "page")
    test = {f"p{i}" for i in range(200) if split_of(f"p{i}", 0.25) == "test"}
    assert 30 < len(test) < 70
    assert {split: set().union(*items.values()) for split, items in found.items()} == {
        "train": {f"p{i}" for i in range(200)} - test,
        "test": test,
    }


def test_rows_without_a_split_follow_their_product(tmp_path, images):
    """A product in two splits, q, has no one split to follow."""
    rows = [{"product": f"p{i}", "item": f"a{i}", "images": ["x/1.jpg"], "split": "test"} for i in range(40)]
    rows += [{"product": f"p{i}", "item": f"b{i}", "images": ["x/2.jpg"], "split": ""} for i in range(40)]
    rows += [
        {"product": "q", "item": f"q-{split}", "images": ["x/1.jpg"], "split": split} for split in ("test", "val", "")
    ]
    catalog = build(tmp_path, rows, test_fraction=0)
    found = products_of_items(catalog, "page")
    assert {item for item in found["test"] if item[0] != "q"} == {f"{kind}{i}" for kind in "ab" for i in range(40)}
    assert {split: [item for item in items if item[0] == "q"] for split, items in found.items()} == {
        "train": ["q-"],
        "val": ["q-val"],
        "test": ["q-test"],
    }
    assert sum(len(item.frames) for item in catalog.items("test", "page")) == 81


def test_products_that_are_one_are_joined(tmp_path, images):
    """B = A, B = C, and an unknown product; D has a comma in its id, as the report exports it."""
    same = tmp_path / "duplicates.csv"
    same.write_text('product,same_as\nB,A\nB,C\nE,"D,1"\nX,A\n', encoding="utf-8")
    rows = [
        {"product": p, "item": f"i{p}", "images": ["x/1.jpg"], "title": p} for p in ("A", "B", "C", "D,1", "E", "F")
    ]
    lines = []
    table = write_table(tmp_path / "items.csv", rows)
    catalog = build_table_catalog(table, images, tmp_path / "catalog", same=same, report=lines.append)
    found = products_of_items(catalog, "page")
    joined = {item: products for own in found.values() for item, products in own.items()}
    assert joined == {"iA": {"A"}, "iB": {"A"}, "iC": {"A"}, "iD,1": {"D,1"}, "iE": {"D,1"}, "iF": {"F"}}
    items = [item for split in catalog.splits for item in catalog.items(split, "page")]
    assert sorted(json.loads(item.payload)["product"] for item in items) == [["A"]] * 3 + [["D,1"]] * 2 + [["F"]]
    assert "duplicates.csv: products joined with others: 3; not in the table: 1" in lines
    with pytest.raises(ValueError, match="of another source \\(same differ\\)"):
        build_table_catalog(table, images, tmp_path / "catalog")


def test_joined_products_are_drawn_into_one_split(tmp_path, images):
    """Each of 40 products is joined with one that its id alone would put into the other split."""
    drawn = {"test": [], "train": []}
    for name in (f"P{number}" for number in range(200)):
        drawn[split_of(name, 0.5)].append(name)
    pairs = [*zip(drawn["test"][:40], drawn["train"][:40], strict=True)]
    (tmp_path / "same.csv").write_text("product,same_as\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    rows = [{"product": name, "item": name, "images": ["x/1.jpg"]} for pair in pairs for name in pair]
    found = products_of_items(build(tmp_path, rows, same=tmp_path / "same.csv", test_fraction=0.5), "page")
    assert set(found["test"]) == {name for pair in pairs for name in pair if split_of(min(pair), 0.5) == "test"}
    assert set(found["train"]) == {name for pair in pairs for name in pair if split_of(min(pair), 0.5) == "train"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("product,same\nA,B\n", "has no column same_as"),
        ("product,same_as\nA,\n", "line 2: 'A' has no other product"),
        ("product,same_as\nB,A\n", "joins 'A' with B, but the table has them in test and train"),
        ("product,same_as\nGröße,A\n", "same.csv is not UTF-8: save it as CSV UTF-8"),
    ],
)
def test_errors_of_products_that_are_one(tmp_path, images, content, message):
    (tmp_path / "same.csv").write_text(content, encoding="cp1252")
    rows = [{"product": p, "item": p, "images": ["x/1.jpg"], "split": s} for p, s in (("A", "train"), ("B", "test"))]
    with pytest.raises(ValueError, match=message):
        build(tmp_path, rows, same=tmp_path / "same.csv")


def test_products_that_are_shown_together_stay_together(tmp_path, images):
    """Each of 200 rooms shows five products of its own, which also have pages, and one of ten that many rooms show."""
    shown = {f"r{i}": [*(f"p{i}-{k}" for k in range(5)), f"q{i % 10}"] for i in range(200)}
    rows = [
        {"product": product, "domain": "room", "item": room, "images": ["x/1.jpg"]}
        for room, products in shown.items()
        for product in products
    ]
    products = sorted({row["product"] for row in rows})
    rows += [{"product": product, "domain": "page", "item": product, "images": ["x/1.jpg"]} for product in products]
    catalog = build(tmp_path, rows, ".parquet", test_fraction=0.1)
    rooms, pages = (products_of_items(catalog, domain) for domain in ("room", "page"))
    assert not rooms["train"].keys() & rooms["test"].keys()
    assert rooms["train"].keys() | rooms["test"].keys() == shown.keys()
    assert 8 <= len(rooms["test"]) <= 35  # all but 0.5% of draws
    for split in ("train", "test"):
        seen = set().union(*rooms[split].values())
        assert seen == pages[split].keys()  # each product has its page and at least one room
        for room, kept in rooms[split].items():
            assert {f"p{room[1:]}-{k}" for k in range(5)} <= kept <= set(shown[room])
    lost = sum(map(len, shown.values())) - sum(len(kept) for items in rooms.values() for kept in items.values())
    assert read_rejected(catalog.folder)[0][2] == "item of another split"
    assert 0 < len(read_rejected(catalog.folder)) == lost < 60


def test_a_given_split_is_kept_and_may_be_val(tmp_path, images):
    shown = {"domain": "page", "images": ["x/1.jpg"]}
    rows = [
        {"product": f"p{i}", "item": f"i{i // 2}", "split": ("train", "val", "test")[i % 3]} | shown for i in range(6)
    ]
    catalog = build(tmp_path, rows, test_fraction=0.5)
    assert catalog.splits == ("train", "val", "test")
    found = products_of_items(catalog, "page")  # the user's choice, even if an item is in two splits
    assert found["val"] == {"i0": {"p1"}, "i2": {"p4"}}
    assert read_rejected(catalog.folder) == []


def test_invalid_lines_and_contradictions_are_listed(tmp_path, images):
    row = b'{"product": "a", "domain": "page", "item": "b", "images": ["x/1.jpg"], "text": "%b"}\n'
    lines = [
        row % b"one",
        b"[1]\n",
        b"{\n",
        b'{"a": "\xff"}\n',
        row % b"two",
        row % b"",
        row % b"one",
        row % b"\xe6\x9d\xaf",
    ]
    (tmp_path / "items.jsonl").write_bytes(b"".join(lines))
    options = {"report": lambda line: None, "test_fraction": 0}
    catalog = build_table_catalog(tmp_path / "items.jsonl", images, tmp_path / "catalog", max_rejected=0.4, **options)
    own = '{"item":"b","product":["a"]}'
    assert list(catalog.items("train", "page")) == [Item(0, "one", (0,), (Frame(0, "x/1.jpg"),), own)]
    assert read_rejected(catalog.folder) == [
        *(("", 2, "no JSON object"), ("", 3, "no JSON object"), ("", 4, "not UTF-8")),
        *(("train", 5, "another text for the same item"), ("train", 8, "another text for the same item")),
    ]
    with pytest.raises(
        ValueError, match=r"(?s)items\.jsonl: 3 of 8 lines are invalid, .*no JSON object: 2, not UTF-8: 1"
    ):
        build_table_catalog(tmp_path / "items.jsonl", images, tmp_path / "other", max_rejected=0.3, **options)


def test_errors_say_what_is_wrong_with_a_table(tmp_path, images):
    def made(name, content, folder=images):
        (tmp_path / name).write_text(content)
        return build_table_catalog(tmp_path / name, folder, tmp_path / "catalog", report=lambda line: None)

    with pytest.raises(ValueError, match=r"items\.txt: choose from \*\.parquet, \*\.csv, \*\.tsv, \*\.jsonl"):
        made("items.txt", "")
    with pytest.raises(ValueError, match=r"needs either .* its columns are product, item, text"):
        made("items.csv", "product,item,text\n")
    with pytest.raises(ValueError, match=r"items\.csv: cannot read the header: unexpected end of data"):
        made("items.csv", 'product,domain,item,"image\n')
    with pytest.raises(
        ValueError, match=r"no column item; needs either a column images .* product, domain, image, images"
    ):
        made("items.jsonl", '{"product": 1, "domain": "page", "image": "", "images": ""}\n')
    with pytest.raises(ValueError, match=r"items\.jsonl: needs either .* its columns are product, domain, item$"):
        made("items.jsonl", '\n{"product": 1, "domain": "page", "item": 2}\n')
    with pytest.raises(ValueError, match="no rows: every split is empty"):
        made("items.csv", "product,domain,item,images\n")
    with pytest.raises(
        ValueError, match=r"none of 2 images .* is in .*images: names must be .*, and there is no 'a\.jpg'"
    ):
        made("items.csv", "product,domain,item,images\n1,page,2,a.jpg|b.jpg\n")
    with pytest.raises(ValueError, match=r"differ only in lower and upper case, such as 'x/1.JPG' \('x/1.jpg' ex"):
        made("items.csv", "product,domain,item,images\n1,page,2,x/1.JPG\n")
    with pytest.raises(ValueError, match=r"are lists of names; separate the names with '\|', such as 'x/1.jpg;3.jpg' "):
        made("items.csv", "product,domain,item,images\n1,page,2,x/1.jpg;3.jpg\n")
    with pytest.raises(ValueError, match=r"images folder .*nowhere not found"):
        made("items.csv", "", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"table .*none\.csv not found"):
        build_table_catalog(tmp_path / "none.csv", images, tmp_path / "catalog")


def build_csv(folder: Path, content: str, **options) -> tuple[Catalog, list[str]]:
    """Returns the catalog of a CSV table and the reported lines."""
    lines: list[str] = []
    (folder / "items.csv").write_text(content)
    images = folder / "images"
    catalog = build_table_catalog(folder / "items.csv", images, folder / "catalog", report=lines.append, **options)
    return catalog, lines


def test_images_of_several_rows_follow_those_of_earlier_rows(tmp_path, images):
    rows = "1,2,x/1.jpg|b.jpg,train\n1,2,a.jpg|x/1.jpg,train\n"
    catalog, _ = build_csv(tmp_path, f"product,item,images,split\n{rows}")
    (item,) = catalog.items("train", "page")
    assert [frame.name for frame in item.frames] == ["x/1.jpg", "b.jpg", "a.jpg"]


def test_images_of_pages_keep_the_order_of_the_table_or_its_times(tmp_path, images):
    shown = {"split": "train", "product": "a"}
    names = ["9_main.jpg", "1_care.jpg", "2_size.jpg", "x/1.jpg"]
    times = [1, 3, 2, 4]
    rows = [shown | {"domain": "page", "item": "listed", "image": name} for name in [*names, names[1]]]
    pairs = zip(reversed(names), reversed(times), strict=True)
    rows += [shown | {"domain": "page", "item": "timed", "image": name, "time": time} for name, time in pairs]
    rows += [shown | {"domain": "page", "item": "same", "image": name, "time": 5} for name in names]
    (tmp_path / "lists").mkdir()
    shutil.copytree(images, tmp_path / "lists" / "images")
    lists = [
        shown | {"domain": "page", "item": f"list{i}", "images": names, "time": time} for i, time in ((0, None), (1, 5))
    ]
    for item in build(tmp_path / "lists", lists).items("train", "page"):
        assert [frame.name for frame in item.frames] == names
    catalog = build(tmp_path, rows)
    kinds = pq.read_table(catalog.folder / "ids.parquet").to_pylist()
    ids = {row["id"]: row["original"] for row in kinds if row["kind"] == "page"}
    frames = {ids[item.item_id]: [frame.name for frame in item.frames] for item in catalog.items("train", "page")}
    timed = ["9_main.jpg", "2_size.jpg", "1_care.jpg", "x/1.jpg"]
    assert frames == {"listed": names, "timed": timed, "same": names}


def test_a_product_with_far_more_items_than_the_others_is_reported(tmp_path, images):
    def table(many: int) -> str:
        rows = [f"many,page,{i}" for i in range(many)] + [f"p{i // 2},page,p{i}" for i in range(20)]
        return "product,domain,item,images\n" + "".join(f"{row},x/1.jpg\n" for row in rows)

    _, lines = build_csv(tmp_path, table(21))
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "product 'many' has 21 of 41 items, far more than the others: check that its id" in warning
    shutil.rmtree(tmp_path / "catalog")
    _, lines = build_csv(tmp_path, table(20))
    assert not [line for line in lines if "warning" in line]


def test_one_invalid_row_is_allowed_in_a_small_table_unless_none_may_be(tmp_path, images):
    good, bad = "a,page,1,x/1.jpg\n", "a,Shop,1,x/1.jpg\n"
    header = "product,domain,item,images\n"
    for content, options in ((2 * bad, {}), (bad, {"max_rejected": 0})):
        with pytest.raises(ValueError, match=r"lines are invalid, more than --max_rejected=0"):
            build_csv(tmp_path, header + good + content, **options)
    catalog, _ = build_csv(tmp_path, header + good + bad)
    assert read_rejected(catalog.folder) == [("", 3, "unknown domain")]


@pytest.mark.parametrize("name", ["what?*", "cat[0-9]", "split=test", "{a,b}'\\"])
def test_no_part_of_a_path_is_a_pattern(tmp_path, name):
    """Builds next to folders that the name would match as a pattern, and with other data."""
    decoys = [name.replace(character, "x") for character in "*?[]{}=" if character in name]
    catalogs = []
    for i, folder in enumerate([*decoys, name, "plain"]):
        parent = tmp_path / folder
        (parent / "images").mkdir(parents=True, exist_ok=True)
        (parent / "images" / "x.jpg").touch()
        product = "a" if folder in (name, "plain") else f"decoy{i}"
        rows = [{"product": product, "domain": d, "item": f"{product}{d}", "images": "x.jpg"} for d in DOMAINS]
        catalogs.append(build(parent, rows, ".parquet"))
    assert catalogs[-2].fingerprint == catalogs[-1].fingerprint
    assert catalogs[-2].summary == catalogs[-1].summary
    assert (catalogs[-2].folder / "ids.parquet").read_bytes() == (catalogs[-1].folder / "ids.parquet").read_bytes()


ROOT = Path(__file__).parents[2]


def test_the_command_builds_a_catalog_once(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "z.jpg").touch()
    table = tmp_path / "items.csv"
    table.write_text("split,product,domain,item,images\ntrain,m,video,30,z.jpg|a.jpg\ntrain,b,video,30,z.jpg|b.jpg\n")
    command = [sys.executable, "-m", "data_prep.table", f"--table={table}", f"--images={tmp_path / 'images'}"]
    command.append(f"--out={tmp_path / 'catalog'}")
    first, second = (subprocess.run(command, capture_output=True, text=True, cwd=ROOT) for _ in range(2))
    assert (first.returncode, first.stderr, second.returncode, second.stderr) == (0, "", 0, "")
    assert "train   video               1           0             3          0            1" in first.stdout
    assert "nothing to do" in second.stdout
    with table.open("a") as file:
        file.write("\n")
    third = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (third.returncode, third.stderr.count("\n")) == (1, 1)
    assert third.stderr.startswith("table: ")
    assert "is a catalog of another source (table differ)" in third.stderr


def test_images_are_looked_for_as_in_a_build(tmp_path):
    images = tmp_path / "images"
    (tmp_path / "disk").mkdir()
    images.mkdir()
    (images / "linked").symlink_to(tmp_path / "disk")
    for path in (tmp_path / "disk" / "a.jpg", images / "B.JPG"):
        path.touch()
    table = tmp_path / "items.csv"
    table.write_text("product,domain,item,images\n1,page,2,linked/a.jpg|b.jpg\n")
    lines: list[str] = []
    build_table_catalog(table, images, tmp_path / "catalog", report=lines.append)
    assert lines[0] == (
        f"warning: 1 of 2 images of the table are not in {images}: 1 of 1 differ only in lower and upper case, "
        "such as 'b.jpg' ('B.JPG' exists)"
    )

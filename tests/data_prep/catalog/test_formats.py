"""Exports of shops, in the layouts of the shops' documentation and sample files."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.catalog.formats import FORMATS, convert_export, unpack_images

SHOPIFY = """Handle,Title,Body (HTML),Vendor,Type,Option1 Value,Variant SKU,Variant Price,Image Src,Image Position
hoodie,Red Hoodie,"<p>Warm, soft</p>",Acme,Tops,S,H-S,49.90,https://cdn.example/h.jpg?v=1,1
hoodie,,,,,M,H-M,49.90,https://cdn.example/h2.jpg,2
hoodie,,,,,L,H-L,49.90,,
mug,Mug,,Acme,Kitchen,,MUG,9,https://cdn.example/m.jpg,1
"""
WOOCOMMERCE = """\ufeffID,Type,SKU,Name,"Regular price",Categories,Images,Parent
44,variable,woo-hoodie,Hoodie,,"Clothing > Hoodies","https://x.example/h.jpg, https://x.example/h2.jpg",
45,variation,woo-hoodie-red,Hoodie - Red,45,,https://x.example/red.jpg,woo-hoodie
46,simple,,Mug,9,Kitchen,https://x.example/m.jpg,
"""
MAGENTO = """sku,product_type,categories,name,visibility,price,base_image,additional_images
MH01-XS-Black,simple,Men/Tops,Hoodie-XS-Black,"Not Visible Individually",52,/m/h/black.jpg,
MH01,configurable,Men/Tops,Hoodie&trade;,"Catalog, Search",52,/m/h/gray.jpg,"/m/h/gray.jpg,/m/h/back.jpg"
"""
GOOGLE = """id\ttitle\tlink\timage_link\tadditional_image_link\tprice\titem_group_id\tproduct_type
R-S\tRed Hoodie S\thttps://s.example/r\thttps://s.example/r.jpg\thttps://s.example/b.jpg\t49.90 USD\tR\tTops
M\tMug\thttps://s.example/m\thttps://s.example/m.jpg\t\t9 USD\t\tKitchen
"""
# Product, item, image, text, title, category, price.
WANTED = {
    "shopify": [
        ("hoodie", "hoodie", "https://cdn.example/h.jpg?v=1", "Red Hoodie", "Red Hoodie", "Tops", "49.90"),
        ("hoodie", "hoodie-2", "https://cdn.example/h2.jpg", "", "", "", "49.90"),
        ("mug", "mug", "https://cdn.example/m.jpg", "Mug", "Mug", "Kitchen", "9"),
    ],
    "woocommerce": [
        ("woo-hoodie", "woo-hoodie", "https://x.example/h.jpg", "Hoodie", "Hoodie", "Clothing > Hoodies", ""),
        ("woo-hoodie", "woo-hoodie-2", "https://x.example/h2.jpg", "", "Hoodie", "Clothing > Hoodies", ""),
        ("46", "46", "https://x.example/m.jpg", "Mug", "Mug", "Kitchen", "9"),
    ],
    "magento": [
        ("MH01", "MH01", "m/h/gray.jpg", "Hoodie™", "Hoodie™", "Men/Tops", "52"),
        ("MH01", "MH01-2", "m/h/back.jpg", "", "Hoodie™", "Men/Tops", "52"),
    ],
    "google": [
        ("R", "R-S", "https://s.example/r.jpg", "Red Hoodie S", "Red Hoodie S", "Tops", "49.90"),
        ("R", "R-S-2", "https://s.example/b.jpg", "", "Red Hoodie S", "Tops", "49.90"),
        ("M", "M", "https://s.example/m.jpg", "Mug", "Mug", "Kitchen", "9"),
    ],
}


def convert(tmp_path, name, text):
    (tmp_path / "export").write_text(text, encoding="utf-8")
    count, _ = convert_export(tmp_path / "export", name, tmp_path / "items.jsonl", max_rejected=0.001)
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(rows) == count
    return rows


@pytest.mark.parametrize(
    ("name", "text"),
    [("shopify", SHOPIFY), ("woocommerce", WOOCOMMERCE), ("magento", MAGENTO), ("google", GOOGLE)],
)
def test_each_image_becomes_an_item(tmp_path, name, text):
    columns = ("product", "item", "images", "text", "title", "category", "price")
    found = [tuple(row[column] for column in columns) for row in convert(tmp_path, name, text)]
    assert found == [(*row[:2], [row[2]], *row[3:]) for row in WANTED[name]]


def test_ids_of_further_images_are_not_those_of_other_items(tmp_path):
    text = "Handle,Title,Image Src\ntee,Red,r.jpg\ntee,,r2.jpg\ntee,,r3.jpg\ntee-2,Blue,b.jpg\ntee-2,,b2.jpg\n"
    rows = convert(tmp_path, "shopify", text)
    assert [(row["product"], row["item"], row["images"][0]) for row in rows] == [
        ("tee", "tee", "r.jpg"),
        ("tee", "tee-3", "r2.jpg"),
        ("tee", "tee-4", "r3.jpg"),
        ("tee-2", "tee-2", "b.jpg"),
        ("tee-2", "tee-2-2", "b2.jpg"),
    ]


def test_the_first_image_has_what_rows_before_it_say(tmp_path):
    rows = convert(tmp_path, "shopify", "Handle,Title,Type,Image Src\nmug,Mug,Kitchen,\nmug,,,m.jpg\nmug,,,m2.jpg\n")
    assert [(row["item"], row["text"], row["category"]) for row in rows] == [
        ("mug", "Mug", "Kitchen"),
        ("mug-2", "", ""),
    ]


def test_all_columns_of_a_name_count(tmp_path):
    text = "id\ttitle\timage link\tadditional image link\tadditional image link\n1\tMug\ta.jpg\tb.jpg\tc.jpg\n"
    assert [row["images"] for row in convert(tmp_path, "google", text)] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]


def test_rows_that_cannot_be_read_are_counted(tmp_path):
    path, rows = tmp_path / "export.csv", [f"h{i},Title,a{i}.jpg\n" for i in range(20)]
    rows[3] = "h3,A title, with a comma,a3.jpg\n"
    path.write_text(f"Handle,Title,Image Src\n{''.join(rows)}")
    count, rejected = convert_export(path, "shopify", tmp_path / "items.jsonl", max_rejected=0.001)
    assert (count, rejected.lines, rejected.invalid) == (19, 20, 1)
    assert [(entry["line"], entry["reason"], entry["start"]) for entry in rejected.entries()] == [
        (5, "wrong number of fields", rows[3].strip())
    ]
    listed = tmp_path / "items.rejected.jsonl"
    assert [json.loads(line)["line"] for line in listed.read_text().splitlines()] == [5]
    convert(tmp_path, "shopify", SHOPIFY)
    assert not listed.exists()
    rows[5] = 'h5,"A title,a5.jpg\n'
    path.write_text(f"Handle,Title,Image Src\n{''.join(rows)}")
    message = (
        r"export.csv: 16 of 20 lines are invalid, .*quotes that do not match: 15.*\n *line 5, wrong number of fields"
    )
    with pytest.raises(ValueError, match=message):
        convert_export(path, "shopify", tmp_path / "items.jsonl", max_rejected=0.001)


def test_long_cells_and_encodings_of_exports(tmp_path):
    long = "x" * 200_000
    assert convert(tmp_path, "shopify", f"Handle,Title,Body,Image Src\nmug,Mug,{long},m.jpg\n")[0]["item"] == "mug"
    path = tmp_path / "export.csv"
    path.write_text("Handle,Title,Image Src\nmug,Größe,m.jpg\n", encoding="utf-16")
    convert_export(path, "shopify", tmp_path / "items.jsonl", max_rejected=0.0)
    assert json.loads((tmp_path / "items.jsonl").read_text())["text"] == "Größe"
    path.write_text("Handle,Title,Image Src\nmug,Größe,m.jpg\n", encoding="cp1252")
    with pytest.raises(ValueError, match=r"export.csv: 1 of 1 lines are invalid.*not UTF-8: 1"):
        convert_export(path, "shopify", tmp_path / "items.jsonl", max_rejected=0.0)


def test_a_map_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('product = "Code"\nitem = "Code"\nimages = ["Photo", "Photo 2"]\ncolor = "Farbe"\n')
    rows = convert(tmp_path, str(path), "code,Farbe,PHOTO,photo_2\n007,rot,a.jpg,b.jpg\n")
    assert [(row["product"], row["item"], row["images"], row["color"]) for row in rows] == [
        ("007", "007", ["a.jpg"], "rot"),
        ("007", "007-2", ["b.jpg"], "rot"),
    ]


@pytest.mark.parametrize("several", [False, True])
def test_embedded_images_are_unpacked(tmp_path, several):
    image = {"bytes": b"\x89PNG", "path": "a.png"}
    rows = [
        {"product": 7, "image": [image, image | {"path": None}] if several else image},
        {"product": 8, "image": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    folder = unpack_images(tmp_path / "train.parquet", tmp_path / "items.jsonl")
    assert folder == tmp_path / "items.images"
    names = [f"{hashlib.sha256(image['bytes']).hexdigest()[:32]}{suffix}" for suffix in (".png", ".jpg")[: 1 + several]]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert (folder / names[0]).read_bytes() == image["bytes"]
    found = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert found == [
        {"item": names[0], "product": 7, "images": names},
        {"item": "", "product": 8, "images": []},
    ]
    rows = [{"product": 7, "image": [None, {"bytes": b"\x89PNG"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    unpack_images(tmp_path / "train.parquet", tmp_path / "items.jsonl")
    assert json.loads((tmp_path / "items.jsonl").read_text())["images"] == [names[0].replace(".png", ".jpg")]
    rows = [{"product": 7, "image": {"bytes": None, "path": "a.png"}}]
    pq.write_table(
        pa.Table.from_pylist(
            rows,
            pa.schema([("product", pa.int64()), ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]),
        ),
        tmp_path / "train.parquet",
    )
    with pytest.raises(ValueError, match=r"train.parquet: an image has no bytes, only the path 'a.png'"):
        unpack_images(tmp_path / "train.parquet", tmp_path / "items.jsonl")
    pq.write_table(pa.table({"product": [1], "image": ["a.jpg"]}), tmp_path / "train.parquet")
    assert unpack_images(tmp_path / "train.parquet", tmp_path / "other.jsonl") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ebay", f"unknown format 'ebay': choose {', '.join(FORMATS)}, or name a TOML file"),
        ("google", "is not an export of google: it lacks product from item group id or id; .* it has sku, name"),
    ],
)
def test_unknown_formats_and_other_exports_are_errors(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, name, "sku,name\n1,a\n")


def test_maps_without_images_are_errors(tmp_path):
    (tmp_path / "map.toml").write_text('product = "a"\nitem = 3\n')
    with pytest.raises(ValueError, match=r"map.toml must name columns for product, item, images, as texts or lists"):
        convert(tmp_path, str(tmp_path / "map.toml"), "a\n1\n")

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
    count = convert_export(tmp_path / "export", name, tmp_path / "items.jsonl")
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

"""Filters and search by words."""

import sqlite3
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest

from cope_jax.search.item_table import open_item_table, split_words
from cope_jax.search.library import fuse
from tests.shop import ShopEmbedder, make_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("category = 'B'", [2, 3]),
        ("category = 'B' and price < 25", [2]),
        ("price between 9 and 31 -- a comment", [1, 2, 3]),
        ("item = 104 or product = '1000'", [0, 4]),
        ("text like '%kind 5%'", [5]),
        ("0", []),
    ],
)
def test_filters_select_items(shop, where, rows):
    assert np.flatnonzero(shop.table.select("page", where)).tolist() == rows
    assert shop.table.columns == ("item", "product", "text", "category", "price", "url")


def test_columns_may_have_any_name(tmp_path):
    names = ['a"b', "", "rowid", "select", "größe", "x) VALUES (1); --", "weight {kg}", "{}"]
    items = [
        SimpleNamespace(own_id=row, own_products=[7], text="", columns={name: str(row) for name in names})
        for row in range(3)
    ]
    table = open_item_table(tmp_path / "items", SimpleNamespace(items={"page": items}))
    assert table.columns == ("item", "product", "text", *names)
    for name in names:
        quoted = name.replace('"', '""')
        assert np.flatnonzero(table.select("page", f'"{quoted}" = 1')).tolist() == [1]
    assert table.choices == {}  # all values are numbers
    assert table.product_title(7) == ""


def test_a_domain_may_have_no_items(tmp_path):
    sizes = ["S", "M"]
    items = [SimpleNamespace(own_id=row, own_products=[7], text="", columns={"size": sizes[row]}) for row in range(2)]
    table = open_item_table(tmp_path / "items", SimpleNamespace(items={"page": items, "live": []}))
    assert table.columns == ("item", "product", "text", "size")
    assert table.choices == {"size": {"M": "\"size\" = 'M'", "S": "\"size\" = 'S'"}}
    assert table.select("live", "size = 'M'").shape == (0,)
    assert table.select("page", "size = 'M'").tolist() == [False, True]
    assert table.match("live", "M", 5) == []
    assert table.product_title(7) == ""


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("colour = 'red'", "no such column: colour; the columns are item, product, text, .*price"),
        ("category =", "filter 'category =': .*syntax error"),
        ("1) UNION SELECT (5", "syntax error"),
        ("1 END; DROP TABLE page; --", "syntax error|one statement"),
        ("load_extension('x') = 1", "not authorized"),
        ("(with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n)", "not authorized"),
        ("price > (select avg(price) from page)", "not authorized"),
        ("exists (select 1 from sqlite_master)", "not authorized"),
        ("length(zeroblob(2000000))", "too big"),
        (f"text like '{'%a' * 101}'", "too complex"),
        ("readfile('/etc/passwd') <> ''", "no such function"),
    ],
)
def test_invalid_and_hostile_filters_are_errors(shop, where, message):
    with pytest.raises(ValueError, match=message):
        shop.table.select("page", where)


def test_a_filter_that_takes_too_long_is_stopped(shop, monkeypatch):
    long = " or ".join(f"price = {-i}" for i in range(1, 300))
    assert not shop.table.select("page", long).any()
    monkeypatch.setattr("cope_jax.search.item_table.MAX_SECONDS", -1)
    with pytest.raises(ValueError, match="interrupted"):
        shop.table.select("page", long)


def test_all_kinds_of_search_keep_to_the_filter(shop):
    where = "price > 25"
    among = ["page", "video"]
    by_item = shop.search_item("page", 100, among=among, top=6, where=where)
    own = [
        shop.search_own(ShopEmbedder(), "page", [], "kind 1", among=among, top=20, mode=mode, where=where)
        for mode in ("hybrid", "dense", "words")
    ]
    for result in (by_item, *own):
        assert {hit.card.item_id for hit in result.hits} == {103, 104, 105}


def test_fusion_scales_similarities_that_are_negative_or_alike():
    words, dense = [(8.0, "page", 3), (2.0, "page", 1)], [(-0.01, "page", 1), (-0.03, "page", 2), (-0.05, "page", 3)]
    found = fuse(words, dense, 0.5)
    assert [row for _, _, row in found] == [1, 2, 3]
    assert [score for score, _, _ in found] == pytest.approx([(1 + 0.5 / 4) / 1.5, 0.5 / 1.5, 0.5 / 1.5])
    assert fuse([], dense[:1], 0.5)[0][2] == 1
    assert fuse(words, [], 0.5) == [(pytest.approx(0.5 / 1.5), "page", 3), (pytest.approx(0.125 / 1.5), "page", 1)]


def test_words_find_texts_and_fusion_adds_scaled_scores(shop):
    """The vector of "kind 4" finds product 4, and the words "kind 3" product 3."""

    class Wrong(ShopEmbedder):
        def embed(self, domain, *, frames, texts):
            return super().embed(domain, frames=frames, texts=["kind 4"])

    def search(mode):
        hits = shop.search_own(Wrong(), "page", [], "kind 3", among=["page"], top=20, mode=mode).hits
        return [(hit.card.item_id, hit.score) for hit in hits]

    assert search("dense")[0][0] == 104
    assert search("words")[0][0] == 103
    fused, dense = dict(search("hybrid")), dict(search("dense"))
    similarity = (dense[103] - min(dense.values())) / (dense[104] - min(dense.values()))
    weight = 0.3 + 2 / 2  # of the words, for a text of two
    assert fused[103] == pytest.approx((weight + similarity) / (1 + weight))
    assert search(None) == search("hybrid")
    by_id = shop.search_own(Wrong(), "page", [], "102", among=["page"], top=2).hits
    assert [hit.card.item_id for hit in by_id] == [102, 104]
    with pytest.raises(ValueError, match=r"mode is 'words': choose one of .*without a text, only dense is possible"):
        shop.search_own(None, "page", [], "", mode="words")


def test_words_of_ids_and_columns_are_found_whatever_the_length_of_the_text(tmp_path):
    columns = [{"title": "a red mug", "category": "kitchen"}, {"title": "a hat", "category": "clothes"}]
    text = " ".join(f"word{i}" for i in range(300))
    items = [
        SimpleNamespace(own_id=f"SKU{row}", own_products=[f"P{row}"], text=text, columns=own)
        for row, own in enumerate(columns)
    ]
    table = open_item_table(tmp_path / "items", SimpleNamespace(items={"page": items}))
    for query in ("sku1", "p1", "hat", "clothes"):
        assert [row for _, row in table.match("page", query, 5)] == [1], query
    assert [row for _, row in table.match("page", "word100", 5)] == [0, 1]
    assert table.match("page", "word299", 5) == []


def test_a_folder_of_another_version_is_written_again(tmp_path):
    folder = tmp_path / "items"
    records = SimpleNamespace(
        items={"page": [SimpleNamespace(own_id=1, own_products=[7], text="red", columns={"size": "S"})]}
    )
    open_item_table(folder, records)
    with closing(sqlite3.connect(folder / "items.db")) as database:
        database.execute("DROP TABLE page")
        database.commit()
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        _ = open_item_table(folder, records).columns
    with closing(sqlite3.connect(folder / "items.db")) as database:
        database.execute("PRAGMA user_version = 0")
    assert open_item_table(folder, records).columns == ("item", "product", "text", "size")


def test_words_of_any_script():
    assert split_words("Red Hoodies, MH01-XS 红裙") == ["red", "hoodie", "mh01", "xs", "红", "裙", "红裙"]
    assert split_words("dresses dress shoes it's") == ["dress", "dress", "shoe", "it", "s"]

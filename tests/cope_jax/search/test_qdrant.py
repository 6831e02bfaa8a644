"""Items copied to Qdrant, in its local mode."""

import pytest
from qdrant_client import QdrantClient, models

from cope_jax.search import qdrant
from cope_jax.search.embedding_store import read_vectors
from tests.shop import make_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


def test_items_are_found_in_qdrant_with_their_columns(shop, monkeypatch):
    client = QdrantClient(":memory:")
    monkeypatch.setattr(qdrant, "QdrantClient", lambda url, **options: client)
    for _ in range(2):  # the second time replaces the first
        counts = qdrant.push(shop, "http://qdrant", collection="shop")
    sizes = {f"shop-{domain}": len(shop.records.items[domain]) for domain in shop.domains}
    assert counts == sizes
    vectors = next(read_vectors(shop.embeddings, "page"))[1]
    point, *_ = client.query_points("shop-video", query=vectors[3].tolist(), limit=2).points
    assert (point.id, point.payload["item"], point.payload["product"]) == (3, 103, [1003])
    assert point.payload["text"] == "video of kind 3 红裙"
    assert (point.payload["category"], point.payload["price"]) == ("B", 30.5)
    only = models.Filter(must=[models.FieldCondition(key="item", match=models.MatchValue(value=101))])
    found = client.query_points("shop-live", query=vectors[3].tolist(), query_filter=only, limit=5).points
    assert [point.id for point in found] == [1]


def test_numbers_are_numbers_and_other_texts_are_texts():
    values = {"52.00": 52.0, "-3": -3, "0.5": 0.5, "4006381333931": 4006381333931}
    values |= {text: text for text in ("nan", "inf", "5 g", "007", "00.5", "1e5", "1_0", "９", "1234567890123456")}
    for text, value in values.items():
        found = qdrant._number(text)
        assert (found, type(found)) == (value, type(value))


def test_a_server_that_cannot_be_reached(shop):
    with pytest.raises(ValueError, match=r"--qdrant=http://127.0.0.1:1: .*; check the address, and QDRANT_API_KEY"):
        qdrant.push(shop, "http://127.0.0.1:1", collection="shop")

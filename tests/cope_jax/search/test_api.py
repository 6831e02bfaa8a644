"""The API of the search server: results, errors, the key, and random requests that follow its description."""

from collections import Counter

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from cope_jax.search import queries
from cope_jax.search.server import make_app
from tests.shop import ShopEmbedder, embedding, make_shop, picture

KEY = {"x-api-key": "a-key-of-16-signs"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def app(shop):
    return make_app(shop, ShopEmbedder(), about="a shop", top=3, hosts=["testserver"])


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app) as client:
        yield client


def search(client, status=200, **query):
    response = client.post("/api/search", json=query)
    assert response.status_code == status, response.text
    return response.json()


def test_a_text_finds_items_with_their_ids_and_columns(client):
    found = search(client, text="kind 4", search=["page", "video"], mode="dense", top=2)
    assert found["query"] == {
        "domain": "page",
        "item": None,
        "products": [],
        "text": "kind 4",
        "frames": 0,
        "columns": {},
    }
    assert found["search"] == ["page", "video"]
    assert found["mode"] == "dense"
    page, video = found["hits"]
    columns = {"category": "C", "price": "40.50", "url": page["columns"]["url"]}
    item = {
        "domain": "page",
        "item": 104,
        "products": [1004],
        "text": "page of kind 4 红裙",
        "frames": 1,
        "columns": columns,
    }
    assert page == {"score": pytest.approx(1), "same_product": False} | item
    assert (video["domain"], video["item"]) == ("video", 104)
    assert page["score"] > video["score"]
    assert client.get("/api/items/page/104").json() == item


def test_what_a_query_leaves_out_has_defaults(client):
    found = search(client, text="kind 4")
    assert found["search"] == ["page", "video", "live"]
    assert found["mode"] == "hybrid"
    assert [hit["item"] for hit in found["hits"]] == [104] * 3
    form = client.post("/api/search", data={"text": "kind 4"})
    assert form.json() == found


def test_items_and_pictures_are_queries(client):
    found = search(client, item="104", domain="video", search="page", where="price < 30")
    assert [hit["item"] for hit in found["hits"]] == [102, 101, 100]
    assert found["query"]["item"] == 104
    response = client.post("/api/search", files=[("pictures", ("3.png", picture(3)))], data={"top": "1"})
    (hit,) = response.json()["hits"]
    assert (hit["domain"], hit["item"]) == ("page", 103)


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ({}, 422, "Nothing to search for: choose a picture or type a title."),
        ({"text": "kind 1", "item": "104"}, 422, "An item is one query, pictures and a text are another"),
        ({"item": "999"}, 404, "no page item 999 among 6"),
        ({"text": "kind 1", "domain": "shop"}, 422, "Unknown domain 'shop': choose among page, video, live."),
        *(
            ({"text": "kind 1", "top": top}, 422, f"top is '{top}': it must be a number from 1 to 100.")
            for top in (0, 101, "-1", "1" * 40)
        ),
        ({"text": ["kind 1", "kind 2"]}, 422, "text is a list: only search can be one, of at least one domain."),
        ({"text": "kind 1", "search": []}, 422, "search is a list: only search can be one, of at least one domain."),
        ({"item": "104", "mode": "words"}, 422, "mode is 'words': for an item, only dense is possible."),
        ({"item": "104", "mode": "magic"}, 422, "mode is 'magic': for an item, only dense is possible."),
        ({"text": "kind 1", "where": "nothing = 1"}, 422, "nothing"),
        ({"text": ["kind 1", {}]}, 400, "text must be a text, a number or a list of texts."),
        ({"text": True}, 400, "text must be"),
        (
            {"txt": "kind 1"},
            422,
            "Unknown field 'txt': choose among domain, text, mode, where, item, top, group, search.",
        ),
        ({"text": "x" * 2001}, 413, "The text has 2001 characters: at most 2000."),
        ({"text": "x" * 64_001}, 413, "The query is too large: at most 64000 bytes."),
        ({"search": ["page"] * 41}, 400, "The query has 41 values: at most 40."),
    ],
)
def test_errors_are_objects(client, query, status, message):
    assert message in search(client, status, **query)["detail"]


def test_fields_of_a_form_have_one_value(client):
    response = client.post("/api/search", data={"text": ["kind 1", "kind 2"]})
    assert (response.status_code, response.json()) == (422, {"detail": "text has several values: it can have one."})
    assert len(client.post("/api/search", data={"text": "kind 1", "search": ["page", "live"]}).json()["search"]) == 2


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"[" * 60_000])
def test_what_is_no_json_object_is_refused(client, body):
    response = client.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["detail"]) == (400, "The query must be a JSON object in UTF-8.")


def test_unknown_items_and_addresses(client):
    for path, message in (
        ("items/page/999", "no page item 999 among 6"),
        ("items/shop/1", "no domain 'shop': choose among page, video, live"),
        ("nothing", "Not Found"),
    ):
        response = client.get(f"/api/{path}")
        assert (response.status_code, response.json()) == (404, {"detail": message})
    assert client.get("/api/search").status_code == 405


def test_requests_under_other_names_and_from_other_sites_are_refused_as_described(client):
    described = client.get("/api/openapi.json").json()["paths"]
    for header, value, status, message in (
        ("host", "evil.example", 400, "Invalid Host header."),
        ("origin", "testserver", 400, "Malformed Origin header."),
        ("origin", "http://evil.example", 403, "Requests from other sites are rejected."),
    ):
        for method, path, operation in (
            ("POST", "/api/search", described["/api/search"]["post"]),
            ("GET", "/api/items/page/101", described["/api/items/{domain}/{item}"]["get"]),
        ):
            response = client.request(method, path, headers={header: value})
            assert (response.status_code, response.json()) == (status, {"detail": message})
            assert str(status) in operation["responses"]


def test_a_busy_server_says_so_soon(app, client, monkeypatch):
    monkeypatch.setattr(queries, "API_PATIENCE", 0.01)
    (handler,) = (route.endpoint for route in app.routes if route.path == "/api/search")
    slots = handler.__self__.queries
    uploads, searches = [object() for _ in range(4)], [object() for _ in range(2)]
    for upload in uploads:
        slots.upload_slots.acquire_on_behalf_of_nowait(upload)
    assert len(search(client, text="kind 4")["hits"]) == 3  # needs no place for a form
    form = {"pictures": ("a.png", picture(4), "image/png")}
    refused = [client.post("/api/search", files=form)]
    for upload in uploads:
        slots.upload_slots.release_on_behalf_of(upload)
    for thread in searches:
        slots.search_slots.acquire_on_behalf_of_nowait(thread)
    refused += [client.post("/api/search", json={"text": "kind 4"}), client.get("/api/items/page/104")]
    for thread in searches:
        slots.search_slots.release_on_behalf_of(thread)
    for response in refused:
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json() == {"detail": "The server is busy: try again in a second."}
    assert len(search(client, text="kind 4")["hits"]) == 3


def test_only_requests_with_the_key_are_answered(shop):
    with TestClient(
        make_app(shop, ShopEmbedder(), about="", top=3, hosts=["testserver"], api_key=KEY["x-api-key"])
    ) as client:
        assert client.get("/api/health").json() == {"status": "ok", "items": {"page": 6, "video": 6, "live": 6}}
        assert client.get("/api/openapi.json").json()["security"] == [{"key": []}]
        for headers in ({}, {"x-api-key": "a-key-of-16-sign"}, {"x-api-key": "ä".encode()}):
            for response in (
                client.post("/api/search", json={"text": "kind 1"}, headers=headers),
                client.get("/api/items/page/101", headers=headers),
            ):
                assert response.status_code == 401
        assert client.post("/api/search", json={"text": "kind 1"}, headers=KEY).status_code == 200
        assert client.get("/api/items/page/101", headers=KEY).status_code == 200
        assert client.get("/").status_code == client.post("/search", headers=KEY).status_code == 404


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_random_requests_get_the_described_responses(app, mode, monkeypatch):
    """Requests that follow the description, and others, most of which are refused."""

    async def decode(files, side, rule):  # in place of a process for each request
        return [np.zeros((side, side, 3), np.uint8) for _ in files], []

    monkeypatch.setattr(queries, "decode_pictures", decode)
    monkeypatch.setattr(ShopEmbedder, "embed", lambda self, domain, **query: embedding(1)[None])
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app)
    statuses = Counter()
    for operation in (result.ok() for result in schema.get_all_operations()):
        if mode == GenerationMode.NEGATIVE and operation.path == "/api/health":
            continue  # which has no values

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(operation.as_strategy(generation_mode=mode))
        def check(case):
            if isinstance(case.body, dict) and mode == GenerationMode.POSITIVE:
                case.body.pop("where", None)  # random text is not SQL
            response = case.call_and_validate(checks=CHECKS)
            statuses[case.operation.path, response.status_code] += 1

        check()
    described = {200, 404, 422} if mode == GenerationMode.POSITIVE else {200, 400, 404, 405, 413, 422}
    assert {status for _, status in statuses} <= described
    assert statuses["/api/search", 200 if mode == GenerationMode.POSITIVE else 422]

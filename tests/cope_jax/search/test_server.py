"""The search server: results, error messages, and limits for untrusted input."""

import html
import io
import re
import socket
import threading

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from cope_jax.data.images import InvalidImageError
from cope_jax.data.thumbnails import data_uri
from cope_jax.search import library, uploads
from cope_jax.search.embedder import resize_picture
from cope_jax.search.item_table import ItemTable
from cope_jax.search.server import allowed_hosts, listen, make_app
from cope_jax.search.upload_decoder import decode
from cope_jax.search.uploads import MAX_FILE, MAX_FILES
from data_prep.synthetic.videos import encode
from tests.shop import HOSTILE, ShopEmbedder, blank_png, make_shop, picture

JPEG, PNG = picture(3, kind="JPEG"), picture(3)
FORM = {"domain": "page", "search": ["page", "video", "live"], "text": ""}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return make_app(make_shop(tmp_path_factory.mktemp("shop")), ShopEmbedder(), about="a shop", top=3)


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def send(client, *files: tuple[str, bytes], **values):
    """Sends the form with files."""
    return client.post("/search", data=FORM | values, files=[("pictures", file) for file in files])


def problem_of(response) -> str:
    """Returns the error message on a page, unescaped as far as needed."""
    return response.text.partition('role="alert">')[2].partition("</p>")[0].replace("&#39;", "'")


def test_home_has_a_form_and_sample_items(client):
    response = client.get("/")
    assert response.status_code == 200
    assert "a shop" in response.text
    assert response.text.count('<li><a href="/?domain=') == 6
    assert 'href="/?domain=live&amp;item=101&amp;search=page&amp;search=video"' in response.text
    for file, kind in (("search.js", "javascript"), ("search.css", "text/css")):
        assert kind in client.get(f"/{file}").headers["content-type"]


@pytest.mark.parametrize("name", ["page 103", "video 103", "live 103"])
def test_picture_finds_its_product(client, name):
    response = send(client, ("3.png", PNG))
    assert response.status_code == 200
    assert f'alt="{name}' in response.text
    assert response.text.count('<li class="hit') == 3


def test_title_finds_its_product_in_the_requested_domain(client):
    response = send(client, text="kind 1", search=["live"])
    assert '<li class="hit' in response.text
    assert 'alt="live 101' in response.text
    assert 'alt="page 101' not in response.text


@pytest.mark.parametrize("mode", ["", "hybrid", "dense", "words"])
def test_filter_of_the_form(client, mode):
    response = send(client, text="kind 1", search=["page"], mode=mode, where="category = 'C' or price < 5")
    assert sorted(re.findall(r'<li class="hit.*?alt="page (\d+)"', response.text, re.S)) == ["100", "104", "105"]
    assert "category = &#39;C&#39; or price &lt; 5" in response.text


def test_filters_of_the_form_are_combined(client):
    response = send(client, text="kind 1", search=["page"], where=["\"category\" = 'C'", "", "price > 45"])
    assert re.findall(r'<li class="hit.*?alt="page (\d+)"', response.text, re.S) == ["105"]
    assert '<option value="&#34;category&#34; = &#39;C&#39;">C</option>' in response.text
    assert response.text.count('<select name="where">') == 1  # none of prices, nor of the one URL


def test_each_product_once(client):
    response = send(client, text="kind 1", group="product")
    found = re.findall(r'<li class="hit.*?product (\d+)<', response.text, re.S)
    assert len(found) == len(set(found)) == 3
    assert send(client, text="kind 1", group="domain").status_code == 422


def test_an_item_is_found_by_its_id_in_the_form(client):
    assert "page 104" in send(client, item="104").text
    assert problem_of(send(client, item="104", text="kind 1")).startswith("An item is one query")


def test_results_say_how_long_they_took_and_lead_to_more(client):
    page = client.get("/", params={"domain": "page", "item": 103, "top": 4}).text
    assert re.search(r"4 items from page, video, live in \d+\.\d\d s", page)
    assert 'href="/?domain=page&amp;item=103&amp;top=7&amp;search=page' in page
    assert "Show more" not in client.get("/", params={"domain": "page", "item": 103, "top": 100}).text


def test_more_results_for_an_item_keep_filter_and_grouping(client):
    def find(page):
        return re.findall(r'<li class="hit.*?alt="(\w+ \d+)"', page, re.S)

    page = send(client, item="101", search=["page", "video"], where="price > 15 or 1 = 0", group="product").text
    (link,) = re.findall(r'class="button next" href="(.*?)">Show more', page)
    more = client.get(html.unescape(link)).text
    assert len(find(page)) == 3
    assert len(find(more)) == 4
    assert find(more)[:3] == find(page)
    assert {name.split()[1] for name in find(more)} == {"102", "103", "104", "105"}
    assert client.get("/", params={"item": 101, "group": "domain"}).status_code == 422


def test_pictures_of_items_are_sent_in_full(client):
    response = client.get("/picture", params={"domain": "video", "item": 103, "number": 2})
    assert response.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(response.content)).size == (32, 24)
    for values in ({"number": "3"}, {"number": "x"}, {"item": "99", "number": "0"}):
        assert client.get("/picture", params={"domain": "video", "item": 103} | values).status_code == 404


def test_search_by_item_in_the_address(client):
    response = client.get("/", params={"domain": "video", "item": 104, "search": "page"})
    assert 'alt="page 104"' in response.text
    assert "same product" in response.text


def test_hostile_texts_are_escaped(client):
    """Texts from records, the form, a file name, and the address."""
    pages = [
        client.get("/", params={"domain": "video", "item": 102}),
        send(client, text=f"kind 1 {HOSTILE}"),
        send(client, ("<script>.png", b"broken")),
        client.get("/", params={"item": HOSTILE}),
        client.get("/", params={"domain": HOSTILE, "item": 1}),
        send(client, text=f"refuse {HOSTILE}"),
        client.get("/<script>document.title=1</script>"),
    ]
    for page in pages:
        assert "<script>d" not in page.text
        assert "<img src=x" not in page.text
        assert "<script>." not in page.text
    assert "&lt;script&gt;document.title" in pages[0].text
    assert "&lt;script&gt;.png cannot be read" in pages[2].text


@pytest.mark.parametrize(
    ("files", "values", "status", "message"),
    [
        ([], {}, 422, "Nothing to search for: choose a picture or type a title."),
        ([("a.jpg", JPEG[:-40])], {}, 415, "a.jpg cannot be read as a picture: choose a JPEG, PNG, or WebP."),
        ([("a.png", PNG[: len(PNG) // 2])], {}, 415, "a.png cannot be read"),
        ([("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")], {}, 415, "a.svg cannot be read"),
        ([("a.ppm", picture(1, kind="PPM"))], {}, 415, "a.ppm cannot be read"),
        ([("a.jpg", JPEG), ("b.jpg", b"")], {"domain": "video"}, 415, "b.jpg cannot be read"),
        ([("a.jpg", b"\0" * (MAX_FILE + 1))], {}, 413, "a.jpg has 10.0 MB: at most 10.0 MB per picture."),
        ([("a.jpg", JPEG)] * (MAX_FILES + 1), {}, 400, "Too many files. Maximum number of files is 16."),
        ([], {"more": ["x"] * 50}, 400, "Too many fields. Maximum number of fields is 40."),
        ([("a.jpg", JPEG)] * 2, {}, 422, "a page has one picture, not 2: choose video or live, or a single picture"),
        ([], {"text": "kind 1", "domain": "shop"}, 422, "Unknown domain 'shop': choose among page, video, live."),
        ([], {"text": "kind 1", "search": ["shop"]}, 422, "Unknown domain 'shop'"),
        ([], {"text": "kind 1", "search": []}, 422, "Nothing to search among"),
        ([], {"text": "x" * 2001}, 413, "The text has 2001 characters: at most 2000."),
        (
            [],
            {"text": "kind 1", "where": "cost < 5"},
            422,
            "filter 'cost &lt; 5': no such column: cost; the columns are",
        ),
        ([], {"text": "kind 1", "where": "1; DROP TABLE page"}, 422, "syntax error"),
        ([], {"text": "kind 1", "where": "x" * 2001}, 413, "The text has 2001 characters: at most 2000."),
        ([], {"text": "kind 1", "mode": "magic"}, 422, "mode is 'magic': choose one of hybrid, dense, words"),
        ([], {"text": "refuse"}, 422, "page item 0 has nothing to embed: &lt;b&gt;refuse&lt;/b&gt;"),
        ([], {"text": "kind 1", "pictures": "no file"}, 400, "pictures must be files, and nothing else can be one."),
    ],
)
def test_invalid_forms_show_an_error_message(client, files, values, status, message):
    response = send(client, *files, **values)
    assert response.status_code == status
    assert message in problem_of(response)
    assert 'id="form"' in response.text


@pytest.mark.parametrize("size", [(9000, 9000), (1, 64_000_000)])
def test_small_file_with_many_pixels_is_rejected_before_decoding(client, monkeypatch, size):
    bomb = blank_png(*size)
    assert len(bomb) < 150_000
    response = send(client, ("bomb.png", bomb))
    assert response.status_code == 413
    assert problem_of(response) == "bomb.png has too many pixels: at most 64 million, and 65,535 on a side."
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InvalidImageError):
        decode(bomb, 8)


@pytest.mark.parametrize("declared", [True, False])
def test_request_size_is_limited_whatever_length_it_declares(client, monkeypatch, declared):
    monkeypatch.setattr(uploads, "MAX_REQUEST", 100_000)
    body = b"x" * 300_000
    content = body if declared else (body[i : i + 1000] for i in range(0, len(body), 1000))
    response = client.post("/search", content=content, headers={"content-type": "multipart/form-data; boundary=b"})
    assert ("content-length" in response.request.headers) == declared
    assert response.status_code == 413
    assert problem_of(response) == "The pictures are too large: at most 0.1 MB together."


def test_malformed_form(client):
    response = client.post("/search", content=b"--x", headers={"content-type": "multipart/form-data"})
    assert response.status_code == 400
    assert "boundary" in problem_of(response)


@pytest.mark.parametrize("charset", ["utf-16", "idna", "undefined", "nonsense", "", "\xff", '"'])
def test_other_encodings_are_rejected(client, charset):
    head = b"multipart/form-data; boundary=b; charset=" + charset.encode("latin-1")
    response = client.post("/search", content=b"--b--", headers={"content-type": head})
    assert response.status_code == 400
    assert problem_of(response) == "The form must be encoded in UTF-8."


def test_a_file_as_text_is_rejected(client):
    response = client.post("/search", data={"domain": "page", "search": "page"}, files={"text": ("a.txt", b"red")})
    assert response.status_code == 400
    assert problem_of(response) == "pictures must be files, and nothing else can be one."


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_decoded_picture_is_that_of_the_embedder(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    square, thumbnail = decode(buffer.getvalue(), 16)
    np.testing.assert_array_equal(square, resize_picture(buffer.getvalue(), 16, 0))
    assert thumbnail == data_uri(buffer.getvalue())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 20 seconds in the color of product 4."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    encode(path, [picture(4, size=(64, 48), kind="JPEG")] * 20)
    return path.read_bytes()


def test_video_finds_its_product(client, clip):
    response = send(client, ("My clip.MP4", clip), domain="video")
    assert response.status_code == 200
    assert re.findall(r'<li class="hit.*?alt="(\w+ \d+)', response.text, re.S) == ["page 104", "video 104", "live 104"]
    assert response.text.partition('<ol class="hits">')[0].count("data:image/jpeg") == 1  # duplicates are skipped


@pytest.mark.parametrize(
    ("files", "status", "message"),
    [
        (["clip.mp4"] * 2, 422, "A video is searched for alone: choose one file."),
        (["clip.mp4", "a.jpg"], 422, "A video is searched for alone"),
        (["clip.jpg"], 415, "clip.jpg cannot be read as a picture"),
        (["noise.mp4"], 415, "noise.mp4 cannot be read as a video: not a video."),
        (["cut.mp4"], 415, "cut.mp4 cannot be read as a video: "),
        (["large.mp4"], 413, "large.mp4 has 2.0 MB: at most 1.0 MB per video."),
    ],
)
def test_invalid_videos_show_an_error_message(client, clip, monkeypatch, files, status, message):
    monkeypatch.setattr(uploads, "MAX_VIDEO", 1_000_000)
    contents = {"a.jpg": JPEG, "noise.mp4": b"noise" * 99, "cut.mp4": clip[: len(clip) // 2]}
    contents["large.mp4"] = bytes(2_000_000)
    response = send(client, *((name, contents.get(name, clip)) for name in files), domain="video")
    assert response.status_code == status
    assert problem_of(response).startswith(message)


def test_unknown_items(client):
    for item, status, message in (("999", 404, "no page item 999"), ("x1", 404, "no page item x1 among 6")):
        response = client.get("/", params={"item": item})
        assert response.status_code == status
        assert message in problem_of(response)


def test_other_host_names_are_rejected(client):
    for host in ("localhost:8000", "LOCALHOST", "[::1]:80"):
        assert client.get("/", headers={"host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.2", "127.0.0.1:80:80", "evil@127.0.0.1", ""):
        response = client.get("/", headers={"host": host})
        assert response.status_code == 400
        assert response.text == "Invalid Host header."


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://evil.example", 403),
        ("http://127.0.0.1:8000@evil.example", 403),
        ("null", 403),
        ("", 400),
        ("127.0.0.1:8000", 400),
        ("http://[::1", 400),
        ("http://127.0.0.1:99999", 400),
        ("http://127.0.0.1:8000/", 400),
        ("http://127.0.0.1:8000 http://evil.example", 400),
    ],
)
def test_forms_from_other_sites_are_rejected(client, origin, status):
    response = client.post("/search", data=FORM | {"text": "kind 1"}, headers={"origin": origin})
    assert response.status_code == status


def test_reloading_a_result_redirects_home(client):
    assert client.get("/search", follow_redirects=False).headers["location"] == "/"


def test_concurrent_queries(client):
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(client.get("/?item=101").status_code)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 6


def test_texts_and_columns_are_read_before_the_first_request(tmp_path, monkeypatch):
    app = make_app(make_shop(tmp_path), ShopEmbedder(), about="a shop", top=3)
    monkeypatch.setattr(library, "open_item_table", None)
    monkeypatch.setattr(ItemTable, "_read", None)  # of the values of columns
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        assert '<option value="&#34;category&#34; = &#39;C&#39;">C</option>' in client.get("/").text
        assert send(client, text="kind 1", mode="words").status_code == 200


def test_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"cannot listen on 127.0.0.1:{port}, choose another --host or --port: "):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("127.0.0.1", [], ("127.0.0.1", "localhost", "[::1]")),
        ("localhost", [], ("localhost", "127.0.0.1", "[::1]")),
        ("::1", ["shop.example"], ("[::1]", "shop.example", "127.0.0.1", "localhost")),
        ("0.0.0.0", ["shop.example", "fd00:0::1"], ("shop.example", "[fd00::1]", "127.0.0.1", "localhost", "[::1]")),
        ("::", ["[fd00::1]"], ("[fd00::1]", "127.0.0.1", "localhost", "[::1]")),
    ],
)
def test_allowed_hosts(host, names, expected):
    with listen(host, 0) as listener:
        assert allowed_hosts(host, listener, names) == expected


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "0"])
def test_all_addresses_need_a_list_of_names(host):
    with listen(host, 0) as listener, pytest.raises(ValueError, match=r"all addresses .* such as --allow_host=192"):
        allowed_hosts(host, listener, [])


@pytest.mark.parametrize("name", ["*", "*.example", "http://shop.example", "shop.example:80", "", "a b"])
def test_invalid_names_are_rejected(name):
    with listen("0.0.0.0", 0) as listener, pytest.raises(ValueError, match="is not a name or an address"):
        allowed_hosts("0.0.0.0", listener, ["shop.example", name])

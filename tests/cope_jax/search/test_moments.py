"""Items that are parts of recordings: their times, the videos that may be played, and how these are served."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cope_jax.data.thumbnails import Card
from cope_jax.search import server
from cope_jax.search.moments import Moment, find_video, read_moment
from cope_jax.search.result_views import play_url, results_page, results_table
from tests.shop import ShopEmbedder, make_shop

CONTENT = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with a recording, next to a file that must not be served."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "videos/shows").mkdir(parents=True)
    (folder / "videos/shows/a show.mp4").write_bytes(CONTENT)
    (folder / "videos/notes.txt").write_text("secret")
    (folder / "other.mp4").write_text("secret")
    return folder / "videos"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"), recording="shows/a show.mp4")


@pytest.fixture(scope="module")
def client(library, videos):
    app = server.make_app(library, ShopEmbedder(), about="a shop", top=6, videos=videos)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def test_columns_become_a_moment():
    moment = read_moment({"video": "a.mp4", "start": "724", "end": "732.50", "price": "3"})
    assert moment == Moment("a.mp4", 724, 732.5)
    assert (moment.span, moment.fragment) == ("12:04–12:12", "#t=724,732.5")
    whole = read_moment({"video": "a.mp4", "start": "", "end": "nan"})
    assert whole == Moment("a.mp4")
    assert (whole.span, whole.fragment) == ("", "#t=0")
    assert read_moment({"start": "1"}) is None


def test_only_parts_of_the_same_video_with_a_time_in_common_overlap():
    part = Moment("a.mp4", 4, 12)
    others = [Moment("a.mp4", 11, 19), Moment("a.mp4", 12, 20), Moment("b.mp4", 4, 12), Moment("a.mp4"), part]
    assert [part.overlaps(other) for other in others] == [True, False, False, False, True]


def test_only_video_files_inside_the_folder_are_found(videos):
    show = videos / "shows/a show.mp4"
    assert find_video(videos, "shows/a show.mp4") == show
    assert find_video(videos, str(show)) == show
    outside = ["../other.mp4", "shows/../../other.mp4", str(videos.parent / "other.mp4")]
    assert [name for name in (*outside, "notes.txt", "shows", "", "\0.mp4") if find_video(videos, name)] == []
    assert find_video(None, "shows/a show.mp4") is None


def test_of_overlapping_segments_only_the_best_is_found(library):
    """The neighbors of product 3's segment, 712 to 720 seconds, are more similar than the next but one."""
    hits = library.search_item("page", 103, among=["live"]).hits
    assert [hit.card.item_id for hit in hits][:1] == [103]
    shown = [read_moment(hit.card.columns) for hit in hits]
    assert shown[0] == Moment("shows/a show.mp4", 712, 720)
    assert not any(a.overlaps(b) for i, a in enumerate(shown) for b in shown[:i])
    assert len(hits) == 3
    assert library.recorded_domains() == ("live",)


def test_a_segment_does_not_find_its_neighbors(library):
    hits = library.search_item("live", 103, among=["live"]).hits
    found = {hit.card.item_id for hit in hits}
    assert 105 in found
    assert not found & {102, 103, 104}


def test_table_and_page_show_times(library, videos):
    result = library.search_item("page", 103, among=["live", "page"], top=2)
    lines = results_table(result).splitlines()
    assert "video" in lines[0]
    assert "time" in lines[0]
    assert "shows/a show.mp4  11:52–12:00" in "\n".join(lines)
    page = results_page([result], "Search", videos)
    assert f'href="{(videos / "shows/a show.mp4").as_uri()}#t=712,720"' in page
    assert "<a class" not in results_page([result], "Search")
    assert "11:52–12:00" in results_page([result], "Search")


def test_videos_on_the_web_are_linked():
    card = Card("live", 1, (), "", (), 1, {"video": "https://shop.example/a.mp4", "start": "5"})
    assert play_url(card, None) == "https://shop.example/a.mp4#t=5"
    card = Card("live", 1, (), "", (), 1, {"video": "javascript:alert(1)//.mp4"})
    assert play_url(card, Path("/")) == ""


def test_hits_play_from_their_time(client):
    page = client.get("/", params={"domain": "page", "item": 103, "search": "live"})
    assert 'href="/video?domain=live&amp;item=103#t=712,720"' in page.text
    assert "11:52–12:00" in page.text


@pytest.mark.parametrize(
    ("asked", "status", "body", "content_range"),
    [
        (None, 200, CONTENT, None),
        ("bytes=0-", 206, CONTENT[:1000], "bytes 0-999/10240"),
        ("bytes=300-309", 206, CONTENT[300:310], "bytes 300-309/10240"),
        ("bytes=300-5000", 206, CONTENT[300:1300], "bytes 300-1299/10240"),
        ("bytes=9900-", 206, CONTENT[9900:], "bytes 9900-10239/10240"),
        ("bytes=99999-", 416, None, "bytes */10240"),
    ],
)
def test_videos_are_served_in_ranges(client, monkeypatch, asked, status, body, content_range):
    monkeypatch.setattr(server, "MAX_RANGE", 1000)
    headers = {"range": asked} if asked else {}
    response = client.get("/video", params={"domain": "live", "item": "103"}, headers=headers)
    assert response.status_code == status
    assert response.headers.get("content-range") == content_range
    if body is not None:
        assert response.content == body
        assert response.headers["content-type"] == "video/mp4"


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/video", 422),
        ("/video?domain=shop&item=1", 422),
        ("/video?domain=live&item=999", 404),
        ("/video?domain=page&item=103", 404),
        ("/video?domain=live&item=../../other.mp4", 404),
        ("/video/shows/a%20show.mp4", 404),
    ],
)
def test_nothing_but_the_videos_of_items_is_served(client, address, status):
    response = client.get(address)
    assert response.status_code == status
    assert "secret" not in response.text


def test_without_a_folder_nothing_is_served(library):
    app = server.make_app(library, ShopEmbedder(), about="a shop", top=6)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        assert client.get("/video", params={"domain": "live", "item": 103}).status_code == 404
        page = client.get("/", params={"domain": "page", "item": 103, "search": "live"}).text
    assert "/video?" not in page
    assert "11:52–12:00" in page

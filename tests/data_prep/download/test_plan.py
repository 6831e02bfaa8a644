"""How options are checked and items are divided into shards."""

import pytest

from benchmarks.catalog_writer import write_catalog
from data_prep.catalog.files import Frame, Item
from data_prep.download.plan import Options, count_frames, take_items
from data_prep.download.shard import image_names, make_url


def items(*counts: int) -> list[Item]:
    return [Item(i, "", (1,), tuple(Frame(t, f"{i}-{t}") for t in range(count))) for i, count in enumerate(counts)]


def shard_sizes(counts, frames):
    left, sizes = iter(items(*counts)), []
    while taken := take_items(left, frames):
        sizes.append(len(taken))
    return sizes


def test_items_are_not_divided():
    assert shard_sizes([2, 2, 1, 5, 9, 1], 4) == [2, 2, 1, 1]


def test_items_without_frames_count_too():
    assert shard_sizes([0, 0, 0, 0, 0, 1, 3], 3) == [3, 3, 1]


def test_a_shard_has_each_name_once():
    twice = [Item(0, "", (1,), (Frame(0, "b"), Frame(1, "a"))), Item(1, "", (1,), (Frame(0, "c"), Frame(1, "b")))]
    assert image_names(twice) == ["b", "a", "c"]


def test_frames_are_counted(tmp_path):
    catalog = write_catalog(tmp_path, {"train": {"page": items(1), "video": items(4, 0, 3), "live": []}})
    assert [count_frames(catalog, "train", domain) for domain in ("page", "video", "live")] == [1, 7, 0]


def test_names_that_are_urls_stay_as_they_are():
    assert make_url("https://host/a/", "http://shop.example/%41.jpg?v=1") == "http://shop.example/%41.jpg?v=1"


def test_names_are_percent_encoded():
    assert make_url("http://h/p/", "a b/ü?#%.jpg") == "http://h/p/a%20b/%C3%BC%3F%23%25.jpg"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retry": ["timeout", "slow"]}, "retry has 'slow'; choose from gone, timeout, connection, protocol, 429, 5xx"),
        ({"placeholders": ["00"]}, "placeholder is '00'; it must be a SHA-256"),
        ({"url_prefix": "ftp://example.org/"}, "url_prefix is 'ftp://example.org/'; it must start with http://"),
        ({"url_prefix": "http://[/"}, r"url_prefix is 'http://\[/', which is not a URL"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)

"""How items are cut into shards."""

from data_prep.catalog.files import Frame, Item, write_catalog
from data_prep.download.plan import count_frames, cut
from data_prep.download.shard import make_url, names_of


def items(*counts: int) -> list[Item]:
    return [Item(i, "", (1,), tuple(Frame(t, f"{i}-{t}") for t in range(count))) for i, count in enumerate(counts)]


def cuts(counts, frames):
    left, sizes = iter(items(*counts)), []
    while taken := cut(left, frames):
        sizes.append(len(taken))
    return sizes


def test_shards_have_whole_items():
    assert cuts([2, 2, 1, 5, 9, 1], 4) == [2, 2, 1, 1]


def test_items_without_frames_end_a_shard_too():
    assert cuts([0, 0, 0, 0, 0, 1, 3], 3) == [3, 3, 1]


def test_a_name_is_asked_for_once_a_shard():
    twice = [Item(0, "", (1,), (Frame(0, "b"), Frame(1, "a"))), Item(1, "", (1,), (Frame(0, "c"), Frame(1, "b")))]
    assert names_of(twice) == ["b", "a", "c"]


def test_frames_are_counted(tmp_path):
    catalog = write_catalog(tmp_path, {"train": {"page": items(1), "video": items(4, 0, 3), "live": []}})
    assert [count_frames(catalog, "train", domain) for domain in ("page", "video", "live")] == [1, 7, 0]


def test_names_are_quoted():
    assert make_url("http://h/p/", "a b/ü?#%.jpg") == "http://h/p/a%20b/%C3%BC%3F%23%25.jpg"

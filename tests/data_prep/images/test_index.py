"""Places of frames, and the images read from them."""

import hashlib
from contextlib import closing

import duckdb
import numpy as np
import pytest

from benchmarks.catalog_writer import write_catalog
from data_prep.catalog.files import Frame, Item
from data_prep.images import index as image_index
from data_prep.images.decoding import ImageProblem
from data_prep.images.index import ImageReader, Place, places_path, read_places, write_index
from data_prep.images.sources import WHOLE_FILE


def make_catalog(folder, items: list[list[str]]):
    """A catalog whose videos have frames of these names."""
    videos = [Item(i, "", (1,), tuple(Frame(t, name) for t, name in enumerate(names))) for i, names in enumerate(items)]
    return write_catalog(folder, {"train": {"page": [], "video": videos, "live": []}})


def places_of(tmp_path, items, sources) -> list[Place]:
    catalog = make_catalog(tmp_path / "catalog", items)
    write_index(tmp_path / "index", catalog, ["train"], sources)
    path = places_path(tmp_path / "index", "train", "video")
    return list(read_places(path, 0, sum(map(len, items))))


def write(folder, files: dict[str, bytes]):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_places_are_in_row_order_for_any_order_on_disk(tmp_path, write_download, monkeypatch):
    monkeypatch.setattr(image_index, "GROUP_ROWS", 50)  # several row groups
    rng = np.random.default_rng(0)
    data = {f"{i:03}.jpg": bytes([i % 251]) * (1 + i) for i in range(400)}
    here = [name for name in data if rng.random() < 0.9]
    rng.shuffle(here)
    folder = write(tmp_path / "folder", {f"{i % 7}/{name}": data[name] for i, name in enumerate(here[:150])})
    write_download(tmp_path / "shards", {name: data[name] for name in here[150:]}, checked=True)
    items = [rng.choice(list(data), rng.integers(0, 9)).tolist() for _ in range(120)]  # names occur repeatedly
    sources = (folder, tmp_path / "shards")
    found = places_of(tmp_path, items, sources)
    for name, place in zip([name for names in items for name in names], found, strict=True):
        assert (place.source is not None) == (name in here)
        if name in here:
            whole = (sources[place.source] / place.path).read_bytes()
            assert whole[max(place.start, 0) :][: place.size] == data[name]
    path = places_path(tmp_path / "index", "train", "video")
    for start, stop in ((0, 1), (49, 51), (50, 100), (7, 333), (5, 5)):
        assert list(read_places(path, start, stop)) == found[start:stop]


def test_one_of_several_images_is_chosen(tmp_path, write_download):
    first = write(tmp_path / "first", {"x/a.jpg": b"1", "b.jpg": b"22", "y/b.jpg": b"333", "w/c.jpg": b"4"})
    second = write(tmp_path / "second", {"a.jpg": b"55", "d.jpg": b"66", "v/c.jpg": b"4"})
    write_download(tmp_path / "third", {"d.jpg": b"77", "e.jpg": b"88"})
    write_download(tmp_path / "third" / "retry", {"e.jpg": b"999"})
    items = [["a.jpg", "b.jpg", "y/b.jpg", "c.jpg", "d.jpg", "e.jpg", "x/b.jpg", "../first/b.jpg"]]
    places = places_of(tmp_path, items, (first, second, tmp_path / "third"))
    assert [(place.source, place.path, place.size) for place in places] == [
        (0, "x/a.jpg", 1),  # the first source comes first
        (0, "b.jpg", 2),  # within a source, the whole name comes before the last part of a path
        (0, "y/b.jpg", 3),
        (0, "w/c.jpg", 1),
        (1, "d.jpg", 2),
        (2, "00000.tar", 2),  # the first of two shards
        (None, None, None),
        (None, None, None),
    ]


def test_an_ambiguous_name_is_an_error_only_if_it_is_used(tmp_path):
    folder = write(tmp_path / "i", {"x/1.jpg": b"1", "y/1.jpg": b"22", "x/2.jpg": b"2", "y/2.jpg": b"2"})
    # Copies are not ambiguous; the first folder's is used.
    assert [place.path for place in places_of(tmp_path / "a", [["2.jpg", "y/1.jpg"]], (folder,))] == [
        "x/2.jpg",
        "y/1.jpg",
    ]
    with pytest.raises(ValueError, match=r"'1.jpg' matches several images of .*: x/1.jpg and y/1.jpg; name .*path"):
        places_of(tmp_path / "b", [["1.jpg"]], (folder,))
    assert not list((tmp_path / "b" / "index").glob("*.tmp"))
    first = write(tmp_path / "first", {"1.jpg": b"333"})
    assert [place.source for place in places_of(tmp_path / "c", [["1.jpg"]], (first, folder))] == [0]


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_images_of_the_same_size_are_ambiguous_if_they_differ(tmp_path, write_download, kind):
    if kind == "folder":
        write(tmp_path / "i", {"x/1.jpg": b"1", "y/1.jpg": b"2"})
        pair, remedy = "x/1.jpg and y/1.jpg", "path"
    else:
        write_download(tmp_path / "i", {"p/1.jpg": b"1", "q/1.jpg": b"2"})
        pair, remedy = r"https://host/a/p/1.jpg\?w=1 and https://host/a/q/1.jpg\?w=1", "URL"
    with pytest.raises(ValueError, match=rf"'1.jpg' matches several images of .*: {pair}; name them by .*{remedy}"):
        places_of(tmp_path / "b", [["1.jpg"]], (tmp_path / "i",))


def test_an_image_of_img2dataset_is_named_by_its_whole_url_or_by_a_last_part_that_is_unique(tmp_path, write_download):
    images = {"p/1.jpg": b"1", "q/1.jpg": b"22", "p/2.jpg": b"333", "q/3.jpg": b"4", "r/3.jpg": b"4"}
    write_download(tmp_path / "shards", images, a_shard=2)
    names = ["https://host/a/p/1.jpg?w=1", "https://host/a/q/1.jpg?w=1", "2.jpg", "3.jpg", "p/1.jpg"]
    places = places_of(tmp_path, [names], (tmp_path / "shards",))
    assert [(place.path, place.size) if place.source is not None else None for place in places] == [
        ("00000.tar", 1),
        ("00000.tar", 2),
        ("00001.tar", 3),
        ("00001.tar", 1),  # the other one is a copy
        None,
    ]


def test_a_finished_index_is_reused(tmp_path, monkeypatch):
    folder = write(tmp_path / "i", {"1.jpg": b"1"})
    places_of(tmp_path, [["1.jpg"]], (folder,))
    (folder / "1.jpg").unlink()
    monkeypatch.setattr(image_index, "_database", None)
    assert [place.path for place in places_of(tmp_path, [["1.jpg"]], (folder,))] == ["1.jpg"]


def test_files_of_a_killed_build_are_removed(tmp_path):
    (tmp_path / "index").mkdir()
    killed = image_index._database(tmp_path / "index")
    with killed.__enter__() as database:  # a process with the same id as this one, as in a container
        database.execute("CREATE VIEW images AS SELECT 1")
    (tmp_path / "index" / "images.parquet.1.tmp").touch()
    assert list((tmp_path / "index").glob("duckdb*"))
    folder = write(tmp_path / "i", {"1.jpg": b"1"})
    assert [place.path for place in places_of(tmp_path, [["1.jpg"]], (folder,))] == ["1.jpg"]
    names = sorted(path.name for path in (tmp_path / "index").iterdir())
    assert names == ["locations.parquet", "train-live.parquet", "train-page.parquet", "train-video.parquet"]


@pytest.mark.parametrize("error", [duckdb.OutOfMemoryException, duckdb.IOException])
def test_errors_of_memory_and_disk_are_explained(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error("No space left on device")

    monkeypatch.setattr(image_index, "_check_aliases", fail)
    folder = write(tmp_path / "i", {"1.jpg": b"1"})
    with pytest.raises(ValueError, match=r"2GB of memory or the disk of .*index are not enough: .*No space left"):
        places_of(tmp_path, [["1.jpg"]], (folder,))


def test_the_reader_says_why_an_image_is_skipped(small, tmp_path, monkeypatch):
    image = small.encode(1)
    write(tmp_path, {"0.tar": b"junk" + image + image[:40], "a.jpg": image})
    sha256 = hashlib.sha256(image).hexdigest()
    with closing(ImageReader((tmp_path,))) as reader:
        assert reader.read(Place(0, "a.jpg", WHOLE_FILE, len(image), "")) == (image, None)
        assert reader.read(Place(0, "b.jpg", WHOLE_FILE, len(image), "")) == (b"", ImageProblem.MISSING)
        assert reader.read(Place(0, "0.tar", 4, len(image), "")) == (image, None)
        assert reader.read(Place(0, "0.tar", 4, len(image), sha256)) == (image, None)
        assert reader.read(Place(0, "0.tar", 5, len(image), sha256)) == (b"", ImageProblem.CHANGED)
        assert reader.read(Place(0, "0.tar", 4 + len(image), 40, "")) == (b"", ImageProblem.CORRUPT)
        cut = image[:-20]
        assert reader.read(Place(0, "0.tar", 4, len(cut), "")) == (b"", ImageProblem.CORRUPT)
        assert reader.read(Place(0, "0.tar", 4, len(cut), hashlib.sha256(cut).hexdigest())) == (cut, None)  # trusted
        html = hashlib.sha256(b"junk").hexdigest()  # a ledger may claim anything
        assert reader.read(Place(0, "0.tar", 0, 4, html)) == (b"", ImageProblem.NOT_AN_IMAGE)
        assert reader.read(Place(None, "", 0, 0, "")) == (b"", ImageProblem.MISSING)
        monkeypatch.setattr("data_prep.images.decoding.MAX_BYTES", len(image) - 1)
        assert reader.read(Place(0, "0.tar", 4, len(image), sha256)) == (b"", ImageProblem.TOO_LARGE)
        with pytest.raises(FileNotFoundError, match=r"1\.tar"):
            reader.read(Place(0, "1.tar", 0, 1, ""))

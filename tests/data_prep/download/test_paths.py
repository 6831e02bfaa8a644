"""Downloads and image indexes work below a folder of any name."""

import tempfile
from contextlib import closing
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_prep.images.index import ImageReader, places_path, read_places, write_index
from data_prep.images.sources import split_folders
from tests.data_prep.download.misbehaving_server import Server, image
from tests.data_prep.download.test_run import fetch, make_catalog, names_of, quoted, read_ledgers

SPECIAL = "?*[]{}()!^=,:;@%#~$&|<>`'\"\\ \n\t-+.ée\u0301\u200b\U0001f600ax1"
NAMES = st.text(st.sampled_from(SPECIAL), min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES)
@example("start=7")
@example("source=1")
@example("name=x,url=y")
@example("what?")
@example("data*")
@example("[!a]")
@example("~")
@example("s3:")
@example("a,b")
def test_a_download_and_its_index_work_in_a_folder_of_any_name(name):
    with tempfile.TemporaryDirectory() as root, Server(default="fine") as server:
        folder = Path(root, name)
        catalog = make_catalog(folder / "catalog", {"page": 3, "video": 5})
        for _ in range(2):  # the second run reads what the first one wrote
            summary = fetch(catalog, folder / "out", server, preflight=False)
        assert summary["splits"]["train"]["video"]["frames"]["ok"] == 4
        assert len(read_ledgers(folder / "out")) == 7
        photos = folder / "photos"
        photos.mkdir()
        first, *others = names_of(catalog, ["video"])
        (photos / first).write_bytes(image(first))
        folders = split_folders([str(photos), str(folder / "out")])
        assert folders == [photos, folder / "out"]
        write_index(folder / "index", catalog, ["train"], folders)
        places = list(read_places(places_path(folder / "index", "train", "video"), 0, 100))
        with closing(ImageReader(folders)) as reader:
            found = [reader.read(place) for place in places]
        assert found == [(data, None) for data in (image(first), *(image(quoted(name)) for name in others))]

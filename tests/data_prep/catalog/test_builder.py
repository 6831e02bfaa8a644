"""Building of catalogs: atomic, at most once, with clear errors."""

import pytest

from data_prep.catalog import builder
from data_prep.catalog.release_catalog import build_release_catalog
from data_prep.common.files import atomic_folder
from tests.data_prep.catalog.sample_releases import build, write_release


def test_a_finished_catalog_is_kept_and_one_of_other_files_is_an_error(tmp_path):
    first = build(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    lines = []
    build_release_catalog(tmp_path / "release", tmp_path / "catalog", splits=("train",), report=lines.append)
    assert lines == [f"{tmp_path / 'catalog'} is already complete: nothing to do"]
    with pytest.raises(ValueError, match=r"catalog is a catalog of another source \(train page texts differ\): remove"):
        build(tmp_path, page_titles="7, b\n")
    write_release(tmp_path / "release", "test_")
    with pytest.raises(ValueError, match=r"another source \(test live frames, test live pairs, .* differ\)"):
        build_release_catalog(tmp_path / "release", tmp_path / "catalog")
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before
    with pytest.raises(ValueError, match=r"release exists and is not a catalog: remove it or choose another --out"):
        build_release_catalog(tmp_path / "release", tmp_path / "release")


def test_interrupted_builds_leave_no_catalog(tmp_path, monkeypatch):
    wanted = build(tmp_path / "whole").fingerprint

    class Killed(BaseException):
        pass

    def die(_):
        raise Killed

    for step in ("write_split", "write_rejected", "write_summary"):
        work = getattr(builder, step)
        with monkeypatch.context() as patch:
            patch.setattr(builder, step, lambda *args, work=work, **kwargs: die(work(*args, **kwargs)))
            with pytest.raises(Killed):
                build(tmp_path)
        assert not (tmp_path / "catalog").exists()
    assert build(tmp_path).fingerprint == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog", "release", "whole"]
    assert sorted(path.name for path in (tmp_path / "catalog").iterdir()) == ["rejected.jsonl", "summary.json", "train"]


def test_two_processes_cannot_build_the_same_catalog(tmp_path):
    with atomic_folder(tmp_path / "catalog"), pytest.raises(ValueError, match=r"is writing .*catalog; wait"):
        build(tmp_path)


def test_errors_say_why_a_catalog_cannot_be_built(tmp_path):
    with pytest.raises(ValueError, match=r"split 'train' has no products: its pair files are empty"):
        build(tmp_path, product_pages_pair="", product_videos_pair="", product_lives_pair="\n")
    release = tmp_path / "release"
    with pytest.raises(ValueError, match=r"splits are \['a', 'a'\]: choose at least one, each once"):
        build_release_catalog(release, tmp_path / "catalog", splits=("a", "a"))
    with pytest.raises(ValueError, match="unknown split 'a'"):
        build_release_catalog(release, tmp_path / "catalog", splits=("a",))
    with pytest.raises(ValueError, match=r"--memory_limit=much: "):
        build_release_catalog(release, tmp_path / "catalog", splits=("train",), memory_limit="much")

"""Which images are found in folders and shards, and by which names."""

import hashlib
import io
import shutil
import tarfile
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.images.sources import WHOLE_FILE, fingerprint, locate, split_folders


def write(folder, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_files_are_named_by_their_path_and_by_its_last_part(tmp_path):
    write(tmp_path, {"a.jpg": b"1", "x/b.jpg": b"22", "x/y/c.jpg": b"333", ".DS_Store": b"0", ".hidden/d.jpg": b"0"})
    write(tmp_path, {"x/summary.json": b"{}", "x/table.parquet": b""})
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "x" / b"\xff.jpg".decode("utf-8", "surrogateescape")).write_bytes(b"")
    found = {(at.name, at.name != at.whole): (at.path, at.start, at.size) for at in locate(tmp_path)}
    assert found == {
        ("a.jpg", False): ("a.jpg", WHOLE_FILE, 1),
        ("link.jpg", False): ("link.jpg", WHOLE_FILE, 1),
        ("x/b.jpg", False): ("x/b.jpg", WHOLE_FILE, 2),
        ("b.jpg", True): ("x/b.jpg", WHOLE_FILE, 2),
        ("x/y/c.jpg", False): ("x/y/c.jpg", WHOLE_FILE, 3),
        ("c.jpg", True): ("x/y/c.jpg", WHOLE_FILE, 3),
    }


@pytest.mark.parametrize("checked", [True, False])
def test_images_in_tars_are_named_by_their_ledgers(tmp_path, write_download, checked):
    images = {"a b.jpg": b"one", "第.jpg": b"second", "../../etc/x.jpg": b"3", "n.tar.jpg": b"4" * 2000}
    write_download(tmp_path / "shards" / "deep", images, a_shard=3, checked=checked)
    found = list(locate(tmp_path))
    if checked:  # as in the catalog of the download
        assert [at.name for at in found] == list(images)
    else:  # by their whole URL or by the last part of its path
        wholes = [f"https://host/a/{quote(name)}?w=1" for name in images]
        assert [at.name for at in found[::2]] == [at.whole for at in found[1::2]] == wholes
        assert [at.name for at in found[1::2]] == ["a b.jpg", "第.jpg", "x.jpg", "n.tar.jpg"]
        assert [at.preference for at in found[::2]] == sorted(at.preference for at in found[::2])
        found = found[1::2]
    assert [at.path for at in found] == 3 * ["shards/deep/00000.tar"] + ["shards/deep/00001.tar"]
    for at, data in zip(found, images.values(), strict=True):
        whole = (tmp_path / at.path).read_bytes()
        assert whole[at.start : at.start + at.size] == data
        assert at.sha256 == (hashlib.sha256(data).hexdigest() if checked else "")
    assert [at.preference for at in found] == sorted(at.preference for at in found)


def test_hashes_of_images_that_were_checked_by_older_rules_do_not_count(tmp_path, write_download):
    write_download(tmp_path, {"a/1.jpg": b"1"}, checked=True)
    ledger = tmp_path / "00000.parquet"
    pq.write_table(pq.read_table(ledger).replace_schema_metadata({b"image_rules": b"1"}), ledger)
    assert [(at.name, at.sha256) for at in locate(tmp_path)] == [("a/1.jpg", "")]


def test_a_ledger_with_offsets_replaces_walking_over_the_tar(tmp_path, write_download):
    images = {"1.jpg": b"1" * 700, "2.jpg": b"22", "gone.jpg": b"", "3.jpg": b"3" * 512}
    shards = tmp_path / "shards"
    write_download(shards, images, checked=True)
    walked, ledger = list(locate(shards)), shards / "00000.parquet"
    table = pq.read_table(ledger)
    columns = {
        "start": [at.start if at.size else None for at in walked],
        "bytes": [at.size or None for at in walked],
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, ledger)
    tar = shards / "00000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(b"?" * len(whole))  # no header is read
    found = [(at.name, at.path, at.start, at.size, at.sha256) for at in locate(shards)]
    assert found == [(at.name, at.path, at.start, at.size, at.sha256) for at in walked if at.size]
    tar.write_bytes(whole[: walked[-1].start + 511])
    with pytest.raises(ValueError, match=r"00000.tar is truncated in '000000003': remove .*tar and run the"):
        list(locate(shards))
    tar.write_bytes(whole)
    pq.write_table(table.set_column(table.schema.get_field_index("start"), "start", pa.array([0, 0, None, 0])), ledger)
    assert list(locate(shards)) != walked
    (shards / "00000.journal").touch()  # of a run that may have written the tar but not the ledger
    assert list(locate(shards)) == walked


def test_a_webdataset_with_folders_and_long_names(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("folder"))
        for name in (f"folder/{'k' * 200}.JPEG", f"folder/{'k' * 200}.txt"):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"image"))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    pq.write_table(pa.table({"key": ["k" * 200], "url": ["http://h/%E5%A5%BD.jpg"]}), tmp_path / "0.parquet")
    whole, at = locate(tmp_path)
    assert (whole.name, at.name, at.whole, at.size) == ("http://h/%E5%A5%BD.jpg", "好.jpg", whole.name, 5)
    assert (tmp_path / "0.tar").read_bytes()[at.start : at.start + 5] == b"image"


@pytest.mark.parametrize("url", [None, "http://[email=info@x.example/c.jpg", "http://h:bad/c.jpg", "", "?", "ü\x00"])
def test_a_ledger_may_have_rows_without_a_valid_url(tmp_path, write_download, url):
    write_download(tmp_path, {"a.jpg": b"1", "b.jpg": b"22"})
    table = pq.read_table(tmp_path / "00000.parquet")
    failed = {"url": [url], "key": ["000009999"], "status": ["failed_to_download"], "sha256": [None]}
    pq.write_table(pa.concat_tables([table, pa.table(failed, table.schema)]), tmp_path / "00000.parquet")
    assert [at.name for at in locate(tmp_path)][1::2] == ["a.jpg", "b.jpg"]
    table = table.set_column(table.schema.get_field_index("url"), "url", pa.array([url, "http://h/b.jpg"]))
    pq.write_table(table, tmp_path / "00000.parquet")
    assert [at.name for at in locate(tmp_path)][-1] == "b.jpg"


def test_texts_of_ledgers_that_are_no_utf_8_are_replaced(tmp_path, write_download):
    write_download(tmp_path, {"a.jpg": b"1"})
    table = pa.table({"key": ["000000000"], "url": pa.array([b"http://h/\xe9.jpg"])})
    pq.write_table(table, tmp_path / "00000.parquet")
    assert [at.name for at in locate(tmp_path)] == ["http://h/\ufffd.jpg", "\ufffd.jpg"]


def test_further_columns_of_a_ledger_of_img2dataset_are_the_users(tmp_path, write_download):
    write_download(tmp_path, {"a.jpg": b"1"})
    table = pq.read_table(tmp_path / "00000.parquet")
    for name in ("name", "start", "bytes"):
        table = table.append_column(name, pa.array(["red dress"]))
    pq.write_table(table, tmp_path / "00000.parquet")
    assert [at.name for at in locate(tmp_path)] == ["https://host/a/a.jpg?w=1", "a.jpg"]


def test_links_that_lead_nowhere_are_skipped(tmp_path):
    write(tmp_path, {"a.jpg": b"1"})
    for name in ("self", "self.jpg", "self.tar"):
        (tmp_path / name).symlink_to(tmp_path / name)
    for name in ("none.jpg", "old.tar", "table.parquet"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    (tmp_path / "below.jpg").symlink_to(tmp_path / "a.jpg" / "b")
    assert [at.name for at in locate(tmp_path)] == ["a.jpg"]
    fingerprint(tmp_path)


def test_links_to_folders_are_followed_once_each(tmp_path):
    write(tmp_path / "i", {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    write(tmp_path / "disk", {"3.jpg": b"3"})
    (tmp_path / "i" / "a" / "up").symlink_to("..")
    (tmp_path / "i" / "0").symlink_to("b")
    (tmp_path / "i" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "i" / "zagain").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "i")
    assert [at.name for at in locate(tmp_path / "i") if at.name == at.whole] == ["a/1.jpg", "b/2.jpg", "linked/3.jpg"]


@pytest.mark.parametrize(
    ("values", "folders"),
    [
        ([], []),
        (["a,b"], ["a,b"]),
        (["a,c"], ["a", "c"]),
        (["a", "a,b"], ["a", "a,b"]),
        (["a,b,c"], ["a", "b", "c"]),
        (["a,"], ["a"]),
    ],
)
def test_a_comma_separates_folders_unless_it_is_part_of_one(tmp_path, monkeypatch, values, folders):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert split_folders(values) == [Path(folder) for folder in folders]


def test_a_copy_has_the_same_fingerprint_and_a_changed_source_another(tmp_path, write_download):
    write(tmp_path / "a", {"1.jpg": b"1", "x/2.jpg": b"22"})
    write_download(tmp_path / "a" / "shards", {"3.jpg": b"3", "4.jpg": b"4"}, a_shard=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = fingerprint(tmp_path / "a")
    assert fingerprint(tmp_path / "b") == first
    (tmp_path / "b" / "x" / "summary.json").write_bytes(b"{}")
    assert fingerprint(tmp_path / "b") == first
    seen = {first}
    for name, data in {"1.jpg": b"11", "x/3.jpg": b"3", "shards/00000.parquet": b"new"}.items():
        write(tmp_path / "b", {name: data})
        seen.add(fingerprint(tmp_path / "b"))
    (tmp_path / "b" / "x" / "2.jpg").rename(tmp_path / "b" / "2.jpg")
    seen.add(fingerprint(tmp_path / "b"))
    assert len(seen) == 5


def test_errors_name_the_file_and_the_remedy(tmp_path, write_download):
    with pytest.raises(ValueError, match=r"images folder .*none not found"):
        list(locate(tmp_path / "none"))
    shards = tmp_path / "shards"
    write_download(shards, {"1.jpg": b"1" * 3000})
    tar, ledger = shards / "00000.tar", shards / "00000.parquet"
    whole, listed = tar.read_bytes(), ledger.read_bytes()

    ledger.unlink()
    for function in (fingerprint, lambda folder: list(locate(folder))):
        with pytest.raises(ValueError, match=r"00000.tar has no ledger 00000.parquet next to it.*finish the download"):
            function(shards)
    ledger.write_bytes(listed[:-9])
    with pytest.raises(ValueError, match=r"00000.parquet is not a whole Parquet file: .*; remove .*parquet and run"):
        list(locate(shards))
    pq.write_table(pa.table({"key": ["0"]}), ledger)
    with pytest.raises(ValueError, match=r"00000.parquet has no column url: it is not the ledger of a download"):
        list(locate(shards))
    pq.write_table(pa.table({"key": ["0"], "url": ["http://h/1.jpg"]}), ledger)
    with pytest.raises(ValueError, match=r"00000.tar has '000000000.jpg', which its ledger does not list"):
        list(locate(shards))
    ledger.write_bytes(listed)
    tar.write_bytes(whole[:2000])
    with pytest.raises(ValueError, match=r"00000.tar is truncated in '000000000.jpg': remove .*tar and run the"):
        list(locate(shards))
    tar.write_bytes(b"<html>" * 999)
    with pytest.raises(ValueError, match=r"00000.tar is not a complete tar .*: remove .*tar and run the"):
        list(locate(shards))
    tar.unlink()
    assert list(locate(shards)) == []  # a ledger of another downloader, which may write no tars
    write_download(tmp_path / "ours", {"1.jpg": b"1", "2.jpg": b"2"}, checked=True)
    (tmp_path / "ours" / "00000.tar").unlink()
    for function in (fingerprint, lambda folder: list(locate(folder))):
        with pytest.raises(ValueError, match=r"00000.parquet lists 2 images, but 00000.tar is missing: run the d"):
            function(tmp_path / "ours")

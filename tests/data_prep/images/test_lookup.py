"""Which images are not found, and why."""

import os
import unicodedata

import pytest

from data_prep.images.lookup import Hint, find_missing, format_hints


def write(folder, names) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"an image")


def test_images_are_found_as_the_build_finds_them(tmp_path, write_download):
    write(tmp_path / "a", ["x/1.jpg", "2.jpg"])
    write(tmp_path / "disk", ["3.jpg"])
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "disk")
    write_download(tmp_path / "b", {"4.jpg": b"an image"})
    folders = [tmp_path / "a", tmp_path / "b"]
    names = ["x/1.jpg", "1.jpg", "2.jpg", "linked/3.jpg", "3.jpg", "4.jpg", "https://host/a/4.jpg?w=1"]
    assert find_missing([*names, "5.jpg"], folders) == {"5.jpg": Hint("", "")}
    assert format_hints(find_missing(["5.jpg"], folders)) == ""


@pytest.mark.parametrize(
    ("name", "file", "cause"),
    [
        (unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.jpg"), "Unicode normal form"),
        ("x/a.jpg", "x/A.JPG", "lower and upper case"),
        ("a%20b.jpg", "a b.jpg", "percent-encoding"),
        ("a b.jpg", "a%20b.jpg", "percent-encoding"),
        ("x\\a.jpg", "x/a.jpg", "backslashes"),
        ("a.jpg ", "a.jpg", "spaces"),
        (" X\\A%20.jpg", "x/a .JPG", "are spelled differently"),
        ("x/a.jpeg", "x/a.jpg", "differ only in the extension"),
        ("a", "a.jpg", "differ only in the extension"),
        ("y/a.jpg", "x/a.jpg", "are in another folder"),
        ("y/a.png", "x/a.jpg", "another extension or are in another folder"),
        ("https://host/y/a.jpg?v=1", "x/a.jpg", "are in another folder"),
        ("a.jpg,b.jpg", "a.jpg", "separate the names with '|'"),
        ("x/a.jpg,x/b.jpg", "x/b.jpg", "separate the names with '|'"),
        ("y/a,b.jpg", "x/a,b.jpg", "are in another folder"),
        ("a.jpg; b.jpg", "a.jpg", "separate the names with '|'"),
        (".x/a.jpg", ".x/a.jpg", "hidden"),
        ("/x/a.jpg", "a.jpg", "not paths from --images"),
        ("../a.jpg", "a.jpg", "not paths from --images"),
    ],
)
def test_hints(tmp_path, name, file, cause):
    write(tmp_path, [file, "other.jpg"])
    (hint,) = find_missing([name, "other.jpg"], [tmp_path]).values()
    assert cause in hint.cause
    assert hint.found == ("" if file.startswith(".") else file)


def test_urls_that_are_not_fetched_are_hinted_at(tmp_path):
    (hint,) = find_missing(["https://h/a.jpg"], [tmp_path]).values()
    assert "fetch them with ./run.sh download" in hint.cause


def test_a_folder_under_two_names_is_hinted_at(tmp_path):
    write(tmp_path, ["a/1.jpg"])
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert find_missing(["b/1.jpg"], [tmp_path]) == {
        "b/1.jpg": Hint("are reached through a link to a folder, whose images have the names of that folder", "a/1.jpg")
    }


def test_names_in_another_encoding_are_hinted_at(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), "正面.jpg".encode("gbk")), "wb"):
        assert "gb18030 instead of UTF-8" in find_missing(["正面.jpg"], [tmp_path])["正面.jpg"].cause


def test_hints_are_counted_with_an_example_each(tmp_path):
    write(tmp_path, ["A.JPG", "B.JPG", "c d.jpg"])
    hints = find_missing(["a.jpg", "b.jpg", "c%20d.jpg", "e.jpg"], [tmp_path])
    assert format_hints(hints) == (
        "2 of 4 differ only in lower and upper case, such as 'a.jpg' ('A.JPG' exists); "
        "1 of 4 differ only in percent-encoding, such as 'c%20d.jpg' ('c d.jpg' exists)"
    )

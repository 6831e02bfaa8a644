"""Parsing of the nine text files: what is tolerated and what each bad line says."""

from pathlib import Path

import pytest

from data_prep.release import Frame, Item, ReleaseError, read_release

FILES = {
    "product_pages_pair": "99, 7\n26, 8\n99, 8\n",
    "product_videos_pair": "26, 7\n",
    "product_lives_pair": "99, 5\n",
    "page_titles": "7, 外套\n",
    "video_asrs": "7, 不买亏大了,碧根果才1元,限时\n",
    "live_asrs": "5, 空\n",
    "page_images": "7, p7.jpg \n8, p8.jpg\n",
    "video_frames": "7, 240, b.jpg \n7, 16, a.jpg\n",
    "live_clips": "5, 1668122889829, l.jpg\n",
}


def write_release(folder: Path, prefix: str = "training_", **changed: str | bytes) -> Path:
    for name, content in (FILES | changed).items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / f"{prefix}{name}.txt").write_bytes(data)
    return folder


def test_reads_a_split_joined_and_in_row_order(tmp_path):
    release = read_release(write_release(tmp_path), "train")
    assert release.split == "train"
    assert release.products == (26, 99)
    # Page 8 belongs to products 26 and 99: the smaller one puts it before page 7. Video 7 is not page 7.
    assert release.items == {
        "page": (Item(8, "", (26, 99), (Frame(0, "p8.jpg"),)), Item(7, "外套", (99,), (Frame(0, "p7.jpg"),))),
        "video": (Item(7, "不买亏大了,碧根果才1元,限时", (26,), (Frame(16, "a.jpg"), Frame(240, "b.jpg"))),),
        "live": (Item(5, "", (99,), (Frame(1668122889829, "l.jpg"),)),),
    }
    assert release.unreferenced == {}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("page_titles", "7,外套", "外套"),
        ("page_titles", "  7 ,\t 外套  \n", "外套"),
        ("page_titles", "7, 外套\r\n", "外套"),
        ("page_titles", "\ufeff7, 外套\n", "外套"),
        ("page_titles", "7, 外套\n\n", "外套"),
        ("page_titles", "7, 外套\n7,外套\n", "外套"),
        ("page_titles", "7, ,a,,b,\n", ",a,,b,"),
        ("page_titles", "7, a\u2028b\x85c\x0bd\n", "a\u2028b\x85c\x0bd"),
        ("page_titles", "7, 空\n", ""),
        ("page_titles", "7, 空气\n", "空气"),
        ("page_titles", "7,\n", ""),
        ("page_titles", "", ""),
        ("page_titles", "007, a\n", "a"),
    ],
)
def test_odd_text_rows_are_read(tmp_path, name, content, text):
    release = read_release(write_release(tmp_path, **{name: content}), "train")
    assert {item.item_id: item.text for item in release.items["page"]} == {8: "", 7: text}


def test_rows_come_in_any_order(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    reversed_files = {name: "\n".join(reversed(text.splitlines())) for name, text in FILES.items()}
    forward = read_release(write_release(tmp_path / "a"), "train")
    assert read_release(write_release(tmp_path / "b", **reversed_files), "train") == forward


def test_items_without_frames_and_products_without_a_domain_stay(tmp_path):
    folder = write_release(tmp_path, product_lives_pair="99, 5\n300, 6\n", page_images="")
    release = read_release(folder, "train")
    assert release.products == (26, 99, 300)
    assert release.items["live"][1] == Item(6, "", (300,), ())
    assert [item.frames for item in release.items["page"]] == [(), ()]


def test_rows_of_items_in_no_pair_are_counted(tmp_path):
    folder = write_release(tmp_path, page_titles="7, a\n70, b\n", video_frames="8, 1, x.jpg\n8, 2, y.jpg\n")
    release = read_release(folder, "train")
    assert release.unreferenced == {"training_page_titles.txt": 1, "training_video_frames.txt": 2}
    assert [item.item_id for item in release.items["video"]] == [7]


def test_same_time_is_ordered_by_name_and_a_repeated_row_counts_once(tmp_path):
    folder = write_release(tmp_path, video_frames="7, 3, b.jpg\n7, 3, a.jpg\n7, 3, b.jpg\n7, 1, c.jpg\n")
    frames = read_release(folder, "train").items["video"][0].frames
    assert frames == (Frame(1, "c.jpg"), Frame(3, "a.jpg"), Frame(3, "b.jpg"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "product_pages_pair",
            "99, 7\n99\n",
            r"_pages_pair\.txt:2: 1 fields in '99', wanted 2: product id, page",
        ),
        ("product_pages_pair", "99, 7, 8\n", r"pages_pair\.txt:1: 3 fields in '99, 7, 8', wanted 2"),
        ("product_pages_pair", "99, -7\n", r"pages_pair\.txt:1: page id '-7' is not a whole number from 0"),
        ("product_pages_pair", "9x, 7\n", r"pages_pair\.txt:1: product id '9x' is not a whole number"),
        ("product_pages_pair", ", 7\n", r"pages_pair\.txt:1: product id '' is not a whole number"),
        ("product_pages_pair", "1_0, 7\n", r"product id '1_0' is not a whole number"),
        ("product_pages_pair", "９９, 7\n", r"product id '９９' is not a whole number"),
        ("product_pages_pair", "1.0, 7\n", r"product id '1\.0' is not a whole number"),
        (
            "product_pages_pair",
            f"{2**63}, 7\n",
            r"product id '9223372036854775808' is not .* to 9223372036854775807",
        ),
        ("page_titles", "7, a\n外套\n", r"page_titles\.txt:2: 1 fields in '外套', wanted 2: page id, text"),
        ("page_titles", "七, a\n", r"page_titles\.txt:1: page id '七' is not a whole number"),
        (
            "page_titles",
            b"\xef\xbb\xbf7, a\n7, \xff\xfe\n",
            r"page_titles\.txt:2: bytes b'\\xff\\xfe\\n' are not UTF-8",
        ),
        ("page_titles", "7, a\n\n7, b\n", r"page_titles\.txt:3: a second, different text for page 7: 'b'"),
        ("page_images", "7,\n", r"page_images\.txt:1: the image name is empty"),
        ("page_images", "7, 0, a.jpg\n", r"page_images\.txt:1: 3 fields .* wanted 2: page id, image name"),
        (
            "page_images",
            "7, ../a.jpg\n",
            r"page_images\.txt:1: image name '\.\./a\.jpg' is a path, wanted a plain",
        ),
        ("page_images", "7, ..\n", r"image name '\.\.' is a path"),
        ("page_images", "7, /etc/passwd\n", r"image name '/etc/passwd' is a path"),
        ("page_images", "7, a\\b.jpg\n", r"image name .* is a path"),
        (
            "page_images",
            "70, a/b.jpg\n",
            r"image name 'a/b\.jpg' is a path",
        ),  # also in a row that is not used
        ("page_images", "7, a\0b.jpg\n", r"image name 'a\\x00b\.jpg' is a path"),
        ("page_images", f"7, {'图' * 90}.jpg\n", r"is longer than 255 bytes"),
        (
            "video_frames",
            "7, a.jpg\n",
            r"video_frames\.txt:1: 2 fields .* video id, frame number, image name",
        ),
        ("video_frames", "7, -1, a.jpg\n", r"video_frames\.txt:1: frame number '-1' is not a whole number"),
        ("live_clips", "5, 1e3, a.jpg\n", r"live_clips\.txt:1: timestamp '1e3' is not a whole number"),
    ],
)
def test_a_bad_line_names_file_line_value_and_what_is_wanted(tmp_path, name, content, message):
    folder = write_release(tmp_path, **{name: content})
    with pytest.raises(ReleaseError, match=message):
        read_release(folder, "train")


def test_missing_files_are_all_named_with_the_folder(tmp_path):
    folder = write_release(tmp_path)
    (folder / "training_live_asrs.txt").unlink()
    (folder / "training_page_titles.txt").unlink()
    with pytest.raises(
        ReleaseError, match=rf"training_page_titles\.txt, training_live_asrs\.txt not found in {folder}"
    ):
        read_release(folder, "train")


def test_prefix_follows_the_split_and_can_be_given(tmp_path):
    write_release(tmp_path, "test_")
    assert read_release(tmp_path, "test").split == "test"
    assert read_release(tmp_path, "validation", prefix="test_").products == (26, 99)
    with pytest.raises(ReleaseError, match="unknown split 'validation': want train, test or a file prefix"):
        read_release(tmp_path, "validation")


def test_a_split_without_products_is_an_error(tmp_path):
    folder = write_release(tmp_path, product_pages_pair="", product_videos_pair="", product_lives_pair="\n")
    with pytest.raises(ReleaseError, match=r"'train' in .*: no products"):
        read_release(folder, "train")

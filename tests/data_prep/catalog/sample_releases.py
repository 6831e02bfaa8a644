"""Releases for tests: a small valid one, invalid lines, and randomly mangled files."""

import json
import random
from pathlib import Path

from data_prep.catalog import release_parser
from data_prep.catalog.files import Catalog
from data_prep.catalog.release_catalog import build_release_catalog

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
# File → kind of its last field; a clip's frame has a time as well.
LASTS = {name: "" if "pair" in name else "text" for name in FILES} | {
    "page_images": "name",
    "video_frames": "clip",
    "live_clips": "clip",
}
LAYOUTS = {  # by kind of last field
    "": release_parser.PAIRS,
    "text": release_parser.TEXTS,
    "name": release_parser.PAGE_FRAMES,
    "clip": release_parser.CLIP_FRAMES,
}
INVALID_LINES = [  # file, line, reason
    ("product_pages_pair", "99\n", "wrong number of fields"),
    ("product_pages_pair", "99, 7, 8\n", "wrong number of fields"),
    ("product_pages_pair", "99, -7\n", "no whole number"),
    ("product_pages_pair", ", 7\n", "no whole number"),
    ("product_pages_pair", "1_0, 7\n", "no whole number"),
    ("product_pages_pair", "９９, 7\n", "no whole number"),
    ("product_pages_pair", "1.0, 7\n", "no whole number"),
    ("product_pages_pair", f"{2**63}, 7\n", "no whole number"),
    ("product_pages_pair", f"{'0' * 20}1, 7\n", "no whole number"),
    ("product_pages_pair", f"{2**31}, 7\n", "product id above 2147483647"),
    ("product_pages_pair", "6901234567892, 7\n", "product id above 2147483647"),
    ("page_titles", "外套\n", "wrong number of fields"),
    ("page_titles", "七, a\n", "no whole number"),
    ("page_titles", b"7, \xff\xfe\n", "not UTF-8"),
    ("page_titles", b"7, \xed\xa0\x80\n", "not UTF-8"),
    ("page_titles", "7, a\0b\n", "NUL byte"),
    ("page_titles", f"7, {'a' * (1 << 20)}\n", "line too long"),
    ("page_images", "7,\n", "empty image name"),
    ("page_images", "7, 0, a.jpg\n", "wrong number of fields"),
    ("page_images", "7, ../a.jpg\n", "image name leads out of its folder"),
    ("page_images", "7, ..\n", "image name leads out of its folder"),
    ("page_images", "7, /etc/passwd\n", "image name leads out of its folder"),
    ("page_images", "7, a\\b.jpg\n", "image name leads out of its folder"),
    ("page_images", "70, a/b.jpg\n", "image name leads out of its folder"),
    ("page_images", f"7, {'图' * 90}.jpg\n", "image name too long"),
    ("video_frames", "7, a.jpg\n", "wrong number of fields"),
    ("video_frames", "7, -1, a.jpg\n", "no whole number"),
    ("live_clips", "5, 1e3, a.jpg\n", "no whole number"),
]


def write_release(folder: Path, prefix: str = "training_", **changed: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (FILES | changed).items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / f"{prefix}{name}.txt").write_bytes(data)
    return folder


def build(folder: Path, *, max_rejected: float = 1.0, **changed: str | bytes) -> Catalog:
    release = write_release(folder / "release", **changed)
    return build_release_catalog(
        release, folder / "catalog", splits=("train",), max_rejected=max_rejected, report=lambda line: None
    )


def read_rejected(catalog: Catalog) -> list[dict]:
    with (catalog.folder / "rejected.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


ODD_NUMBERS = ["3 ", "02", "9" * 18, "9" * 19, str(2**63 - 1), "3" * 20, "３", "-1", "+1", "1_0", "1.0", "", "x", "1 2"]
ODD_NUMBERS += [str(2**31 - 1), str(2**31), "0" * 9 + "3"]  # the first and the last are valid product ids
ODD_LASTS = {
    "text": ["空", " 空 ", "", "a,b", ",", "\u2028a\u2028b", "a\0b", "x" * 500],
    "name": ["", ".", "..", ".a", "...", "../a", "a/b", "/a", "a\\b", "a\0", "图.jpg", "图" * 85, "图" * 86, "a b"],
}
BLANKS = ["", " ", "\t", "\r", "\u3000", "\u2028", "\x1c", "\u200b", "\ufeff"]  # the last two are not whitespace
NOISE = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x80", b"\0", b",", b"\n", b"\r", b"/", b" ", "外".encode()]


def mangled(rng: random.Random, last: str) -> bytes:
    """Returns a file whose lines often share ids and names. Many are mangled, and some of those still valid."""
    content = b"\xef\xbb\xbf" if rng.random() < 0.2 else b""
    lines_so_far = []
    for _ in range(rng.randrange(40)):
        line = rng.choice(lines_so_far) if lines_so_far and rng.random() < 0.2 else mangled_line(rng, last)
        lines_so_far.append(line)
        content += line + rng.choice([b"\n", b"\n", b"\n", b"\n", b"\r\n", b" \n\n"])
    return content.removesuffix(b"\n") if rng.random() < 0.3 else content


def mangled_line(rng: random.Random, last: str) -> bytes:
    kind = "name" if last == "clip" else last
    good = [str(rng.randrange(4)) for _ in range(1 if last in ("text", "name") else 2)]
    good += [rng.choice(["a", "b", "空", "c.jpg"])] if kind else []
    odd = [ODD_NUMBERS] * (len(good) - bool(kind)) + ([ODD_LASTS[kind]] if kind else [])
    fields = [rng.choice(strange) if rng.random() < 0.1 else field for field, strange in zip(good, odd, strict=True)]
    if rng.random() < 0.1:
        fields = rng.choice([fields[:-1], [*fields, "1"], ["1", *fields], [" ".join(fields)]])
    blank = BLANKS if rng.random() < 0.2 else [" "]
    line = ",".join(rng.choice(blank) + field + rng.choice(blank) for field in fields).encode()
    if rng.random() < 0.15:
        at = rng.randrange(len(line) + 1)
        line = line[:at] + rng.choice([*NOISE, rng.randbytes(2)]) + line[at + rng.randrange(2) :]
    return line

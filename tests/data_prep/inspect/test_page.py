"""Tests the page of `inspect` on a small data set."""

import base64
import hashlib
import html
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.inspect.distributions import Histogram
from data_prep.inspect.page import format_table, inspect, plot, render, thumbnail

ROOT = Path(__file__).parents[3]


def table(splits, name: str) -> dict[tuple[str, str], list[str]]:
    (split,) = (split for split in splits if split.name == name)
    return {(domain, what): numbers for domain, what, *numbers in split.rows}


def test_the_table_has_the_distributions_of_the_records(small, built):
    splits = inspect(built, items=0, products=0, processes=1)
    rows = table(splits, "train")
    videos = small.expected("train", "video")
    frames = [len(item["frames"]) for item in videos]
    assert rows["video", "57 items"] == [""] * 5
    assert rows["video", "frames"] == ["4", "5", f"{round(np.mean(frames), 1)}", "6", "6"]
    assert rows["video", "characters"][-1] == str(max(len(item["text"]) for item in videos))
    assert rows["video", "width"] == ["11", "11", "11.0", "11", "11"]
    assert rows["video", "height"][1] == "9"
    assert rows["page", "products"][-1] == "2"
    products = small.read(built, "product", "train")
    assert rows["product", "video items"][2] == str(round(np.mean([len(p["video_rows"]) for p in products]), 1))
    assert re.search("^video +frames +4 +5 +", format_table(splits[0]), re.MULTILINE)


def test_a_sample_of_the_items_may_be_read(built):
    rows = table(inspect(built, items=20, products=0, processes=1), "train")
    (read,) = (match[1] for _, name in rows if (match := re.fullmatch(r"57 items \((\d+) read\)", name)))
    assert 20 <= int(read) < 40


def test_the_page_shows_products_and_escapes_all_texts(own_small, tmp_path):
    own_small.splits["train"]["page"][1].text = "<script>alert('x')</script>&"
    own_small.build(own_small.write(tmp_path), tmp_path / "data")
    out = tmp_path / "page.html"
    command = [sys.executable, "-m", "data_prep.inspect", f"--data_dir={tmp_path / 'data'}", f"--out={out}"]
    done = subprocess.run([*command, "--processes=1", "--products=3"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"page: {out}\n")
    page = out.read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;" in page
    assert re.findall("<h4>product (.*)</h4>", page) == ["0", "20", "40", "501"]
    found = r"{}</span> <small>(\d+) of (\d+) items"
    of_each = [re.findall(found.format(domain), page) for domain in ("page", "video", "live")]
    items = page.count('<div class="item">')
    assert items == sum(int(number) for found in of_each for number, _ in found) > 6
    shown = re.findall('base64,([^"]+)"', page)
    assert len(shown) > 20
    assert {Image.open(io.BytesIO(base64.b64decode(image))).size for image in shown} == {(11, 9)}
    constant = page.count('<p class="always">always')
    assert page.count("<svg") + constant == 2 * (3 * 6 + 3)
    assert '<figcaption>page: width</figcaption>\n<p class="always">always <b>11</b></p>' in page
    assert f"<h1>{(tmp_path / 'data').name}</h1>" in page


def test_the_page_loads_and_runs_nothing(own_small, tmp_path):
    hostile = "</style><img src=x onerror=alert(1)><svg onload=alert(2)>\u202e\" onclick='alert(3)'"
    for item in own_small.splits["test"]["page"]:
        item.text = hostile
    own_small.build(own_small.write(tmp_path), tmp_path / "data")
    splits = inspect(tmp_path / "data", items=0, products=1, processes=1)
    page = render(tmp_path / hostile.replace("/", ""), splits)
    policy, style = re.findall('Content-Security-Policy" content="(.*?)"|<style>(.*?)</style>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert html.unescape(policy[0]) == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    tags = re.findall("<[a-z][^>]*>", page)
    assert not [tag for tag in tags if re.search(r"\son\w+=|\sstyle=|\shref=\"(?!#|data:,)|<script", tag)]
    assert {tag.partition("base64,")[0] for tag in tags if tag.startswith("<img")} == {'<img src="data:image/jpeg;'}
    assert page.count("&lt;/style&gt;&lt;img src=x onerror=alert(1)&gt;") == 1  # text
    assert page.count("&lt;style&gt;&lt;img src=x onerror=alert(1)&gt;") == 3  # title, heading, folder


def test_photos_are_shown_upright():
    image = Image.new("RGB", (200, 100), (200, 0, 0))
    image.paste((0, 0, 200), (100, 0, 200, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    uri = thumbnail(buffer.getvalue())
    small = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))).astype(int)
    assert small.shape == (96, 48, 3)
    assert small[5, 20, 0] > 150  # the left half is now on top
    assert small[90, 20, 2] > 150


def test_thumbnails_show_what_training_sees():
    gray = Image.fromarray(np.full((9, 11), 128 << 8, np.uint16))
    clear = Image.new("RGBA", (11, 9), (200, 0, 0, 0))
    clear.putpixel((0, 0), (255, 255, 255, 1))
    for image, shown in ((gray, 128), (clear, 255)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        small = Image.open(io.BytesIO(base64.b64decode(thumbnail(buffer.getvalue()).split(",")[1])))
        np.testing.assert_allclose(np.asarray(small).astype(int), np.full((9, 11, 3), shown), atol=2)


def test_bars_include_every_value():
    histogram = Histogram({3: 5, 4: 10, 900: 1})
    bars = plot("x", histogram)["bars"]
    counts = [int(bar["label"].split(": ")[1]) for bar in bars]
    assert [bar["label"] for bar in plot("y", Histogram({7: 1200, 8: 300}))["bars"]] == ["7: 1,200", "8: 300"]
    assert sum(counts) == histogram.total()
    assert max(bar["height"] for bar in bars) == 80
    assert len(plot("z", Histogram({77: 99, 96: 1}))["bars"]) == 2  # not "always 77"
    assert plot("empty", Histogram())["bars"] == []

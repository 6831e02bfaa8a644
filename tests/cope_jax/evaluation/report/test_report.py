"""The report: its numbers, its safety against hostile texts, and its behavior in a browser."""

import io
import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from cope_jax.data.records import Item
from cope_jax.data.thumbnails import placeholder
from cope_jax.evaluation.embed_items import Items
from cope_jax.evaluation.evaluate_run import EmbeddedSplit, Evaluation, compute_metrics
from cope_jax.evaluation.metrics.retrieval import direction_ranks
from cope_jax.evaluation.report import report
from cope_jax.evaluation.report.pca_map import POINTS
from cope_jax.evaluation.report.query_gallery import MAX_BYTES
from cope_jax.evaluation.report.report import PAGES, parts, write_report
from cope_jax.evaluation.report.right_first import category_rows
from cope_jax.evaluation.results import ResultFiles
from cope_jax.runs.config_file import save_config
from data_prep.common.domains import DOMAINS, directions
from data_prep.common.html_pages import percent
from data_prep.table import read_same_products
from tests.browser import DESKTOP, PHONE, chromium, console_messages, needs_chromium, resize

HOSTILE = [
    "<script>document.title = 'hacked'</script>",
    "</script><script>document.title = 'hacked'</script>",
    "<img src=x onerror=\"document.title = 'hacked'\">",
    "'\"><svg onload=document.title='hacked'>",
    "<!--<script>",
    "]]> {{7*7}} {% raw %} ${7*7} \u2028 \u2029",
]
SIZES = {"page": 30, "video": 34, "live": 32}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 12), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Rows:
    """Records with hostile texts; every third picture is invalid."""

    kind = "image"

    def __init__(self, items: Items):
        self.items = items

    def __getitem__(self, row: int) -> Item:
        frames = () if row % 7 == 1 else (picture(), b"broken" if row % 3 == 0 else picture())
        text = HOSTILE[row % len(HOSTILE)] + f" Item{row}" if row % 5 else ""
        products = tuple(self.items.products[row].tolist())
        return Item(int(self.items.item_ids[row]), text, products, frames)


@pytest.fixture(scope="module")
def evaluation(make_tiny_config):
    rng = np.random.default_rng(0)
    centers, items = rng.normal(size=(9, 16)), {}
    for number, (domain, size) in enumerate(SIZES.items(), start=1):
        products = rng.integers(0, 9, size)
        vectors = centers[products] + 1.1 * rng.normal(size=(size, 16))
        vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
        rows = np.arange(size)
        has_text = rows % 5 > 0
        masked = np.stack([vectors[::-1], np.where(has_text[:, None], vectors, 0)], axis=1)
        columns = rows, rows + 1000 * number, rows % 6 + 1, has_text, masked
        items[domain] = Items(vectors, products[:, None], *columns)
    ranks = direction_ranks({domain: (own.vectors, own.products) for domain, own in items.items()})
    categories = {domain: np.array(["hat/<i>", "bag"])[own.products[:, 0] % 2] for domain, own in items.items()}
    config, embedded = make_tiny_config(), EmbeddedSplit(items, ranks, categories)
    metrics = compute_metrics(embedded, config, step=1234)
    metrics["evaluated"] = {"data": "<b>d1</b>", "subset": None}
    return Evaluation(config, 1234, ResultFiles(Path()), metrics, embedded)


@pytest.fixture(scope="module")
def write(evaluation, tmp_path_factory):
    """Returns a function that writes the report of a run with a hostile name and returns its path."""

    def written(evaluation=evaluation, baseline=None):
        workdir = tmp_path_factory.mktemp("runs") / "<i>run"
        (workdir / "eval" / str(evaluation.step)).mkdir(parents=True)
        save_config(evaluation.config, workdir)
        line = {"loss": 2.0, "sigmoid/accuracy/page_video": 0.4}
        (workdir / "metrics.jsonl").write_text("".join(json.dumps({"step": i} | line) + "\n" for i in (600, 1234)))
        with pytest.MonkeyPatch.context() as patch:
            rows = {domain: Rows(evaluation.embedded.items[domain]) for domain in DOMAINS}
            patch.setattr(report, "open_records", lambda data_dir, split: SimpleNamespace(items=rows))
            files = ResultFiles(workdir / "eval" / str(evaluation.step))
            write_report(workdir, replace(evaluation, files=files), evaluation.embedded, baseline)
        return files.report

    return written


@pytest.fixture(scope="module")
def path(write, evaluation):
    halved = json.loads(json.dumps(evaluation.metrics))
    for found in halved["retrieval"].values():
        found["r1"] /= 2
    return write(baseline=halved)


@pytest.fixture(scope="module")
def page(path):
    return path.read_text(encoding="utf-8")


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1))


class Tables(HTMLParser):
    """Collects the cells of tables by id, and all tags."""

    def __init__(self):
        super().__init__()
        self.tables, self.tags, self.table, self.cell = {}, [], None, False

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.table = self.tables.setdefault(dict(attributes)["id"], [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("th", "td"):
            self.table[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("th", "td")

    def handle_data(self, data):
        if self.cell:
            self.table[-1][-1] += data


def parsed(page: str) -> Tables:
    parser = Tables()
    parser.feed(page)
    return parser


def test_numbers_match_the_metrics(page, evaluation):
    tables = parsed(page).tables
    metrics = evaluation.metrics
    rows = {row[0]: row[1:] for row in tables["retrieval"]}
    few_shot = {row[0]: row[1:] for row in tables["few-shot"]}
    parts_of = {row[0]: dict(zip(tables["parts"][0], row, strict=True)) for row in tables["parts"]}
    for name, (source, target) in directions(DOMAINS).items():
        found = metrics["retrieval"][name]
        cells = rows[f"{source} → {target}"]
        assert cells[:2] == [str(found["queries"]), str(found["gallery"])]
        for cell, key in zip(cells[2:6], ("r1", "r5", "r10", "map"), strict=True):
            low, high = metrics["intervals"]["retrieval"][name][key]
            untrained = found[key] / (2 if key == "r1" else 1)
            assert cell.split() == [f"{found[key]:.3f}", f"{low:.3f}–{high:.3f}", f"{untrained:.3f}"]
        assert cells[6].split()[0] == f"{found['median_rank']:g}"
        accuracy, half = metrics["few_shot"][name]["accuracy"], metrics["few_shot"][name]["ci95"]
        assert few_shot[f"{source} → {target}"][2].split()[:3] == [f"{accuracy:.3f}", "±", f"{half:.3f}"]
        every = metrics["few_shot_all"]["1"][name]
        assert few_shot[f"{source} → {target}"][3].split() == [f"{every['accuracy']:.3f}", "of", str(every["ways"])]
        part = metrics["by_text"][name]["without"]
        shown = parts_of[f"{source} → {target}"]["without text"].split()
        assert shown == [f"{part['r1']:.3f}", str(part["queries"])]
        part = metrics["by_frames"][name]["2-3"]
        assert parts_of[f"{source} → {target}"]["2–3 frames"].split() == [f"{part['r1']:.3f}", str(part["queries"])]
    for cell, key in zip(rows["mean"][2:6], ("r1", "r5", "r10", "map"), strict=True):
        low, high = metrics["intervals"]["retrieval_mean"][f"mean_{key}"]
        assert cell.split()[:2] == [f"{metrics['retrieval_mean'][f'mean_{key}']:.3f}", f"{low:.3f}–{high:.3f}"]
    for row, name in zip(tables["modalities"][1:], metrics["retrieval"], strict=False):
        found = [metrics["modalities"][kind][name] for kind in ("both", "frames", "text")]
        assert [cell.split() for cell in row[1:]] == [[f"{own['r1']:.3f}", str(own["queries"])] for own in found]
    assert tables["modalities"][-1][1:] == [f"{own['mean_r1']:.3f}" for own in metrics["modalities"].values()]
    for row in tables["text"][1:]:
        found = metrics["text"][domain := row[0].removeprefix("text → ")]
        low, high = metrics["intervals"]["text"][domain]["r1"]
        assert row[1:3] == [str(found["queries"]), str(found["gallery"])]
        assert row[3].split() == [f"{found['r1']:.3f}", f"{low:.3f}–{high:.3f}"]
    assert len(tables["text"]) == 4
    assert tables["width"][1][1:] == [f"{own['mean_r1']:.3f}" for own in metrics["prefixes"].values()]
    for row in tables["galleries"][1:]:
        expected = [metrics[kind][row[0]][key] for kind in ("same_domain", "all_domains") for key in ("r1", "map")]
        assert [cell.split()[0] for cell in row[1:]] == [f"{value:.3f}" for value in expected]


def test_the_report_leads_with_how_often_the_right_product_is_first(page, evaluation):
    tables, metrics = parsed(page).tables, evaluation.metrics
    assert list(tables)[:2] == ["first-direction", "first-category"]
    rows = {row[0]: row[1:] for row in tables["first-direction"]}
    for name, (source, target) in directions(DOMAINS).items():
        found = metrics["retrieval"][name]
        low, high = metrics["intervals"]["retrieval"][name]["r1"]
        expected = [found["r1"], None, None, found["r1"] / 2, metrics["chance"][name], None]
        cells = rows[f"{source} → {target}"]
        assert [cell for cell, value in zip(cells, expected, strict=True) if value is not None] == [
            percent(value) for value in expected if value is not None
        ]
        assert cells[1] == f"{percent(low)}–{percent(high)}"
    assert rows["mean"][0] == percent(metrics["retrieval_mean"]["mean_r1"])
    rows = {row[0]: row[1:] for row in tables["first-category"]}
    for number, name in enumerate(("hat/<i>", "bag")):
        right = [own.rank[own.product % 2 == number] == 1 for own in evaluation.embedded.outcomes.values()]
        share = np.concatenate(right).mean()
        assert rows[name][0] == percent(share)
        assert rows[name][-1] == str(sum(map(len, right)))
        low, high = (float(bound.strip("%")) / 100 for bound in rows[name][1].split("–"))
        assert low < share < high


def test_a_category_has_chance_and_the_mean_over_the_queries_of_the_model_before_training(evaluation):
    of_each = {"p2v": {"bag": {"r1": 0.5, "queries": 30}}, "v2p": {"bag": {"r1": 0.1, "queries": 10}}}
    rows = category_rows(evaluation.embedded, evaluation.metrics, {"by_category": of_each})
    assert {row["category"]: row["baseline"] for row in rows} == {"bag": pytest.approx(0.4), "hat/<i>": None}
    for row, number in zip(rows, (1, 0) if rows[0]["category"] == "bag" else (0, 1), strict=True):
        chance = [own.chance[own.product % 2 == number] for own in evaluation.embedded.outcomes.values()]
        assert row["chance"] == pytest.approx(np.concatenate(chance).mean())


def test_failures_match_counts_of_misses(page, evaluation):
    missed, pairs, queries = Counter(), Counter(), Counter()
    for own in evaluation.embedded.outcomes.values():
        for product, rank, other in zip(
            own.product.tolist(), own.rank.tolist(), own.nearest_product.tolist(), strict=True
        ):
            queries[product] += 1
            missed[product] += rank > 1
            pairs[tuple(sorted((product, other)))] += rank > 1
    tables = parsed(page).tables
    shown = {int(row[0].split()[0]): [int(cell) for cell in row[1:3]] for row in tables["worst-products"][1:]}
    assert shown == {product: [missed[product], queries[product]] for product in queries if missed[product]}
    counts = [wrong for wrong, _ in shown.values()]
    assert counts == sorted(counts, reverse=True)
    shown = {tuple(int(cell.split()[0]) for cell in row[:2]): int(row[2]) for row in tables["pairs"][1:]}
    assert shown == dict(sorted(((pair, n) for pair, n in pairs.items() if n), key=lambda e: (-e[1], e[0]))[:30])
    without = np.concatenate([own.rank[~own.has_text] == 1 for own in evaluation.embedded.outcomes.values()])
    assert f"<b>{percent(without.mean())}</b> of the {len(without)} queries without text" in page


def test_baseline_is_optional(write):
    page = write().read_text(encoding="utf-8")
    assert "before training" not in page
    assert 'class="baseline"' not in page


def test_hostile_texts_are_escaped(page):
    """The run's name, the fingerprint, and texts of items are only text in the page."""
    tags = [tag for tag, _ in parsed(page).tags]
    assert tags.count("script") == 2
    assert "i" not in tags
    assert all(found["src"].startswith("data:image/jpeg;") for tag, found in parsed(page).tags if tag == "img")
    assert "&lt;i&gt;run" in page
    assert "&lt;b&gt;d1" in page
    assert not re.search("[\u2028\u2029]", re.search('id="data">(.*?)</script>', page, re.S).group(1))
    texts = {item["text"] for item in data_of(page)["items"].values()}
    for hostile in HOSTILE:
        assert any(text.startswith(hostile) for text in texts)
    assert any("{{7*7}}" in text for text in texts)


def test_page_loads_nothing_and_runs_only_its_own_script(page):
    tags = parsed(page).tags
    (policy,) = (found["content"] for tag, found in tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    links = [found[key] for tag, found in tags for key in ("src", "href", "action") if key in found and tag != "img"]
    assert {link[0] for link in links if link != "data:,"} == {"#"}
    assert not [found for _, found in tags if "style" in found or any(key.startswith("on") for key in found)]
    assert "</script" not in (PAGES / "report.js").read_text()


def test_every_chart_has_a_title_and_a_description(page):
    tags = parsed(page).tags
    named = [found for tag, found in tags if tag == "svg" and found.get("role") == "img"]
    assert len(named) == 6 + 6 + 3
    ids = [found["id"] for _, found in tags if "id" in found]
    assert len(ids) == len(set(ids))
    assert {reference for found in named for reference in found["aria-labelledby"].split()} <= set(ids)


def test_invalid_and_missing_pictures(page):
    items = data_of(page)["items"]
    invalid = [item for item in items.values() if placeholder(96) in item["frames"]]
    assert invalid
    assert all(int(item["id"]) % 1000 % 3 == 0 for item in invalid)
    assert any(item["frames"] == [] and item["count"] == 0 for item in items.values())


def test_file_size_is_limited(page, write, evaluation, monkeypatch):
    """Noise compresses worst, and a Chinese character takes six bytes. A map with all points takes another MB."""
    assert len(page) < 500_000
    rng = np.random.default_rng(0)
    noise = []
    for _ in range(20):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(buffer, "JPEG")
        noise.append(buffer.getvalue())
    monkeypatch.setattr(Rows, "__getitem__", lambda rows, row: Item(row, "长" * 900, (1,), tuple(noise[:5])))
    monkeypatch.setattr(report, "gallery", partial(report.gallery, limit=1_000_000))
    assert 800_000 < write().stat().st_size < 1_700_000  # with up to 120 pictures of failures
    assert MAX_BYTES + POINTS * 700 + 800_000 < 10_000_000


def test_parts_are_sorted_by_size():
    assert parts({"p2v": {"8-15": 1, "1": 1}, "v2p": {"16-31": 1, "2-3": 1, "0": 1}}) == [
        "0",
        "1",
        "2-3",
        "8-15",
        "16-31",
    ]
    assert parts({"p2v": {"without": 1, "with": 1}}) == ["with", "without"]


def test_percent():
    assert [percent(share) for share in (0, 0.0047, 0.0349, 0.734, 1)] == ["0%", "0.5%", "3.5%", "73%", "100%"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture
def opened(browser, path):
    resize(browser, DESKTOP)
    browser.get(path.as_uri())
    yield browser
    assert console_messages(browser) == []
    assert browser.title == "<i>run, step 1234: evaluation"  # not changed by a text


def cards(driver) -> list[str]:
    return [card.text for card in driver.find_elements(By.CSS_SELECTOR, ".card")]


def pick(driver, name: str, value: str) -> None:
    driver.find_element(By.CSS_SELECTOR, f'input[name="{name}"][value="{value}"]').send_keys(Keys.SPACE)


def count(driver) -> int:
    text = driver.find_element(By.ID, "count").text
    return 0 if text.startswith("No matching") else int(re.fullmatch(r"\d+ of (\d+) queries shown", text).group(1))


@needs_chromium
def test_gallery_filters(opened, page):
    answers = data_of(page)["answers"]
    assert count(opened) == len(answers)
    assert len(cards(opened)) == 12
    for outcome, wanted in {
        "right": lambda answer: answer["rank"] == 1,
        "wrong": lambda answer: answer["rank"] > 1,
        "confused": lambda answer: answer["confused"],
    }.items():
        pick(opened, "outcome", outcome)
        assert count(opened) == sum(map(wanted, answers)) > 0
    assert all("≈ confusion" in card and "right answer" in card for card in cards(opened))
    pick(opened, "direction", "v2l")
    expected = [answer for answer in answers if answer["confused"] and answer["direction"] == "v2l"]
    assert count(opened) == len(expected)
    assert all("video → live" in card for card in cards(opened))


@needs_chromium
def test_pairs_are_marked_kept_and_exported_for_the_table(opened, tmp_path):
    opened.execute_script(
        "localStorage.clear();"
        "URL.createObjectURL = (blob) => { blob.text().then((text) => { window.csv = text; }); return '#'; };"
    )
    button = opened.find_element(By.CSS_SELECTOR, "#pairs button.same")
    pair = sorted((button.get_attribute("data-a"), button.get_attribute("data-b")))
    button.send_keys(Keys.ENTER)
    tile = opened.find_element(By.CSS_SELECTOR, ".tile button.same[aria-pressed=false]")
    other = sorted((tile.get_attribute("data-a"), tile.get_attribute("data-b")))
    tile.send_keys(Keys.SPACE)
    assert "2 pairs are marked" in opened.find_element(By.ID, "marked").text
    opened.find_element(By.ID, "export").send_keys(Keys.ENTER)
    (tmp_path / "same.csv").write_text(WebDriverWait(opened, 20).until(lambda d: d.execute_script("return window.csv")))
    wanted = {
        name: min(set(pair) | set(other) if set(pair) & set(other) else own) for own in (pair, other) for name in own
    }
    assert read_same_products(tmp_path / "same.csv") == {name: first for name, first in wanted.items() if name != first}
    opened.refresh()
    assert "2 pairs are marked" in opened.find_element(By.ID, "marked").text
    opened.find_element(By.ID, "unmark").send_keys(Keys.ENTER)
    assert not opened.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]")


@needs_chromium
def test_links_lead_to_queries(opened, page, path):
    answers = data_of(page)["answers"]
    opened.find_element(By.CSS_SELECTOR, "#worst-products a.product").send_keys(Keys.ENTER)
    product = opened.find_element(By.CSS_SELECTOR, "#worst-products a.product b").text
    keys = [(answer["query"], answer["hits"][0][0]) for answer in answers]
    items = data_of(page)["items"]
    assert count(opened) == sum(any(product in items[key]["products"] for key in own) for own in keys) > 0
    card = opened.find_element(By.CSS_SELECTOR, ".card")
    shown = card.text.split("\nCopy link")[0]
    card.find_element(By.CSS_SELECTOR, "button.link").send_keys(Keys.ENTER)
    link = opened.current_url
    opened.get("about:blank")
    opened.get(link)
    assert [card.split("\nCopy link")[0] for card in cards(opened)] == [shown]
    opened.find_element(By.CSS_SELECTOR, "#only a").send_keys(Keys.ENTER)
    assert count(opened) == len(answers)
    pick(opened, "outcome", "notext")
    assert count(opened) == sum(not data_of(page)["items"][answer["query"]]["text"] for answer in answers)
    opened.get(path.as_uri())


@needs_chromium
def test_tables_of_failures_sort(opened):
    title = opened.find_elements(By.CSS_SELECTOR, "#worst-products thead button")[3]  # right first
    for order in ("descending", "ascending"):
        title.send_keys(Keys.ENTER)
        rows = opened.find_elements(By.CSS_SELECTOR, "#worst-products tbody tr")
        shares = [float(row.find_elements(By.TAG_NAME, "td")[2].text.strip("%")) for row in rows]
        assert shares == sorted(shares, reverse=order == "descending")
        assert title.find_element(By.XPATH, "..").get_attribute("aria-sort") == order


@needs_chromium
def test_search_covers_texts_ids_and_products(opened, page):
    found = data_of(page)
    field = opened.find_element(By.NAME, "words")
    for words in ("<SCRIPT>document", "iTEM7", "1007", "{{7*7}}"):
        field.clear()
        field.send_keys(words)
        expected = [
            answer
            for answer in found["answers"]
            if any(
                words.lower() in f"{item['text']}\n{item['id']}".lower()
                for item in (found["items"][key] for key in (answer["query"], answer["best"][0]))
            )
        ]
        assert count(opened) == len(expected) > 0
    field.clear()
    field.send_keys("nothing has this text")
    assert cards(opened) == []
    assert "clear the search" in opened.find_element(By.ID, "count").text


@needs_chromium
def test_show_more_and_keyboard_navigation(opened):
    more = opened.find_element(By.ID, "more")
    more.send_keys(Keys.ENTER)
    assert len(cards(opened)) == 24
    place = "return [...document.querySelectorAll('.card')].indexOf(document.activeElement)"
    assert opened.execute_script(place) == 12
    pick(opened, "outcome", "right")
    opened.execute_script("[...document.querySelectorAll('#pairs button.same')].pop().focus()")
    met = []
    for _ in range(60):
        opened.switch_to.active_element.send_keys(Keys.TAB)
        active = opened.switch_to.active_element
        met.append(active.get_attribute("id") or active.get_attribute("name") or active.get_attribute("class"))
        if met[-1] == "map":
            break
    assert {"map", "direction", "outcome", "words", "more"} <= set(met)


@needs_chromium
def test_map_describes_the_selected_point(opened, page):
    points = data_of(page)["points"]
    marks = opened.find_elements(By.CSS_SELECTOR, ".map:first-of-type .page")
    assert len(marks) == 2 * SIZES["page"]
    readout = opened.find_element(By.ID, "readout")
    opened.find_element(By.CSS_SELECTOR, ".map").send_keys(Keys.ARROW_RIGHT)
    first = readout.text
    ids = {point[2]: point for point in points}
    shown = ids[first.split("\n")[0].split()[1]]
    kin = sum(point[3] == shown[3] for point in points) - 1
    assert f"product {shown[3][0]}; {kin} other items" in first
    assert len(opened.find_elements(By.CSS_SELECTOR, ".links line")) == 2 * kin
    opened.find_element(By.CSS_SELECTOR, ".map").send_keys(Keys.ARROW_DOWN)
    assert readout.text != first


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_phone_needs_no_horizontal_scrolling(opened, dark):
    resize(opened, PHONE, dark=dark)
    width = opened.execute_script("return document.documentElement.scrollWidth")
    assert width == PHONE[0]
    ground = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(18, 21, 26)" if dark else "rgb(255, 255, 255)")

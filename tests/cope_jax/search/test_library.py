"""Search results of the library, and the search command."""

import re
from dataclasses import replace

import numpy as np
import pytest
from absl import flags

from cope_jax.data.records import open_records
from cope_jax.runs.config_file import load_config
from cope_jax.search import __main__ as command
from cope_jax.search import server
from cope_jax.search.embedding_store import read_manifest
from cope_jax.search.library import fuse, open_library
from cope_jax.search.result_views import results_page, results_table
from data_prep.common.domains import DOMAINS
from tests.shop import HOSTILE, ShopEmbedder, make_shop, picture


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


def found(result) -> list[tuple[str, int]]:
    return [(hit.card.domain, hit.card.item_id) for hit in result.hits]


def test_nothing_is_similar_below_the_limits(tmp_path):
    """The page of another product has a similarity of 0, and words are never below."""
    shop = make_shop(tmp_path)
    for limits, similar in (({}, True), ({"page": {"page": 0.5}}, False), ({"page": {"page": -0.5}}, True)):
        own = replace(shop, limits=limits | {"page.text": {"page": 1.5, "video": 1.5, "live": 1.5}} if limits else {})
        assert own.search_item("page", 103, among=["page"]).similar == similar
        assert own.search_own(ShopEmbedder(), "page", [], "kind 3", mode="dense").similar == (not limits)
        assert own.search_own(ShopEmbedder(), "page", [], "kind 3").similar


def test_an_item_without_text_has_the_title_of_its_product(tmp_path):
    shop = make_shop(tmp_path)
    items = shop.records.items["video"]
    items[3] = replace(items[3], text="")
    hits = shop.search_item("page", 103, among=["video"], top=1).hits
    assert hits[0].card.text == ""
    assert shop.title(hits[0].card) == "page of kind 3 红裙"
    assert shop.title(shop.search_item("page", 104, among=["video"], top=1).hits[0].card) == "video of kind 4 红裙"


def test_item_finds_its_product_but_not_itself(shop):
    """Page 103 is in its product's direction, its video 0.1 off, its live item 0.3, and live item 102 π/2 - 0.3."""
    result = shop.search_item("page", 103, top=3)
    assert found(result) == [("video", 103), ("live", 103), ("live", 102)]
    scores = [hit.score for hit in result.hits]
    np.testing.assert_allclose(scores, [np.cos(0.1), np.cos(0.3), np.sin(0.3)], rtol=1e-5)
    assert [hit.same_product for hit in result.hits] == [True, True, False]
    assert (result.query.domain, result.query.item_id, result.query.product_ids) == ("page", 103, (1003,))
    assert len(result.hits[1].card.frames) == 4  # of five


def test_only_the_requested_domains_are_searched(shop):
    assert {domain for domain, _ in found(shop.search_item("video", 103, among=["page"], top=6))} == {"page"}
    assert set(found(shop.search_item("video", 103, among=["video"], top=2))) == {("video", 102), ("video", 104)}
    assert shop.search_item("page", 101, among=("live", "page")).searched == ("page", "live")


def test_own_pictures_and_text_find_items(shop):
    result = shop.search_own(ShopEmbedder(), "page", [picture(4)], "", thumbnails=["data:,"], top=3)
    assert found(result) == [("page", 104), ("video", 104), ("live", 104)]
    assert (result.query.item_id, result.query.frames) == (None, ("data:,",))
    assert found(shop.search_own(ShopEmbedder(), "live", [], "kind 1", among=["video"], top=1)) == [("video", 101)]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (lambda shop: shop.search_item("page", 99), "no page item 99 among 6"),
        (lambda shop: shop.search_item("shop", 100), "unknown domain 'shop': choose among page, video, live"),
        (lambda shop: shop.search_item("page", 100, among=["clip"]), "unknown domain 'clip'"),
        (lambda shop: shop.search_item("page", 100, top=0), "0 items requested; it must be 1 to 100"),
        (lambda shop: shop.search_own(ShopEmbedder(), "page", [b"", b""], ""), "a page has one picture, not 2"),
    ],
)
def test_invalid_queries(shop, search, message):
    with pytest.raises(ValueError, match=message):
        search(shop)


def test_samples_are_from_every_domain(shop):
    assert shop.samples() == [(domain, item) for domain in DOMAINS for item in (101, 104)]


def test_table_is_aligned_and_has_no_control_characters(shop):
    table = results_table(shop.search_item("video", 102, top=3), width=100)
    lines = table.splitlines()
    assert lines[0] == "rank  domain  item  products (= the query's)  score  text"
    assert lines[2].split()[:6] == ["1", "page", "102", "1002", "=", "0.995"]
    assert lines[3].index("live") == lines[0].index("domain")
    assert lines[2].index("<script>") == lines[3].index("live of") == lines[0].index("text")
    assert "\x1b" not in table


def test_hostile_texts_are_escaped_on_the_page(shop):
    html = results_page([shop.search_item("video", 102, top=3)], HOSTILE)
    assert re.findall(r"<script|<img src=x", html) == []
    assert 'content="default-src &#39;none&#39;; img-src data:; style-src &#39;sha256-' in html
    assert html.count("&lt;script&gt;document.title=&#39;stolen&#39;&lt;/script&gt;") >= 2
    assert html.count('src="data:image/jpeg;base64,') == 3 + 1 + 4 + 4  # the query, its page, and two live items


@pytest.fixture
def run(workdir, monkeypatch, capsys):
    """Returns a function that runs the command on the tiny run and returns its output."""
    values = flags.FlagValues()
    with monkeypatch.context() as patch:
        patch.setattr(command, "FLAGS", values)
        for name in ("DEFINE_string", "DEFINE_enum", "DEFINE_integer", "DEFINE_list", "DEFINE_bool"):
            define = getattr(flags, name)
            patch.setattr(flags, name, lambda *a, define=define, **k: define(*a, flag_values=values, **k))
        patch.setattr(flags, "mark_flag_as_required", lambda name: None)
        command.define_flags()

        def call(*words: str) -> str:
            values.unparse_flags()
            command.main(*values(["search", f"--workdir={workdir}", *words])[1:])
            return capsys.readouterr().out

        yield call


def test_first_command_creates_embeddings_index_and_page(run, workdir):
    """A second command reuses the embeddings and the index."""
    folder = workdir / "eval/6/embeddings/test"
    printed = run()
    assert re.findall(r"(\w+): flat index of \d+ items, recall@10 1.000", printed) == list(DOMAINS)
    assert printed.count("rank  domain") == 6
    assert f"written to {folder / 'search.html'}" in printed
    page = (folder / "search.html").read_text()
    assert page.count('<article class="result">') == 6
    assert page.count("data:image/jpeg") > 60
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "search.html"}
    run()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_files_of_an_item_find_the_item(run, workdir, tmp_path):
    """The pictures and the text of an item are nearest to the item itself."""
    config = load_config(workdir)
    item = open_records(config.data.data_dir, "test").items["video"][5]
    for number, frame in enumerate(item.frames):
        (tmp_path / f"{number}.jpg").write_bytes(frame)
    images = ",".join(str(tmp_path / f"{number}.jpg") for number in range(len(item.frames)))
    printed = run("query", "--domain=video", f"--images={images}", f"--text={item.text}", f"--html={tmp_path}/a.html")
    first = printed.splitlines()[printed.splitlines().index("video of your own") + 3]
    assert first.split()[:3] == ["1", "video", str(item.item_id)]
    assert "1.000" in first
    assert (tmp_path / "a.html").exists()


def test_search_by_id_in_one_domain(run, workdir):
    item = open_records(load_config(workdir).data.data_dir, "test").items["page"][3]
    printed = run("--item", str(item.item_id), "--among=live", "--top=4")
    lines = printed[printed.index(f"page {item.item_id}\n") :].splitlines()
    assert [line.split()[1] for line in lines[3:7]] == ["live"] * 4


@pytest.mark.slow
def test_other_data_have_embeddings_of_their_own(run, workdir, other_data_dir):
    run()
    printed = run(f"--data_dir={other_data_dir}", "--top=3")
    assert re.search(r"written to .*/eval/6/data-test-[0-9a-f]{8}/embeddings/test/search.html", printed)


def test_an_existing_index_of_another_kind_is_built_again(run):
    run()
    assert "page: hnsw index of" in run("--kind=hnsw")
    assert "index of" not in run("--kind=hnsw")
    assert "index of" not in run()
    with pytest.raises(ValueError, match="an index of codes needs"):
        run("--kind=codes")
    assert "page: flat index of" in run("--kind=flat")


def test_build_replaces_the_index(run, workdir):
    assert "page: hnsw index of" in run("build", "--kind=hnsw")
    assert "flat index" in run("build")


@pytest.mark.slow
def test_existing_embeddings_of_another_precision_are_used(workdir, tmp_path, monkeypatch):
    """The limits of similarity hold only for embeddings of the whole width that are not binary."""
    from cope_jax.search.embedding_store import embed_to_parquet

    limits = {"page": {"video": 0.5}}
    monkeypatch.setattr("cope_jax.search.library.ResultFiles.read", lambda files: {"similarity_limits": limits})
    for name, form in (("short", {"dims": 8}), ("signs", {"dtype": "binary"})):
        embed_to_parquet(workdir, tmp_path / name, split="test", **form)
        assert open_library(workdir, embeddings=tmp_path / name, report=lambda line: None).limits == {}
    embed_to_parquet(workdir, tmp_path / "half", split="test", dtype="float16", rows=9)
    library = open_library(workdir, embeddings=tmp_path / "half", report=lambda line: None)
    assert read_manifest(library.embeddings)["dtype"] == "float16"
    assert library.limits == limits
    assert library.search_item("page", int(library.ids["page"][0]), top=3).hits[0].score <= 1.001


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["find"], "unknown action 'find': choose one of query, moments, serve, build"),
        (["query", "build"], "unknown action 'query build'"),
        (["--item=1", "--text=a"], "--item is one query, --images or --video and --text are another: give one of them"),
        (["--item=1", "--video=a.mp4"], "--item is one query"),
        (["--images=a.jpg", "--video=a.mp4"], "--images and --video are both given: choose one of them"),
        (["--video=/no/a.mp4"], "/no/a.mp4: missing file"),
        (["moments", "--text=a"], "no item has a start and an end: cut recordings with"),
        (["--videos=/no/folder"], "--videos=/no/folder is not a folder"),
        (["--step=newest"], "--step is 'newest'; expected"),
    ],
)
def test_invalid_arguments(run, words, message):
    with pytest.raises(ValueError, match=message):
        run(*words)


def test_serve(run, monkeypatch):
    class Server:
        def run(self, sockets):
            assert sockets[0].getsockname()[0] == "127.0.0.1"

    monkeypatch.setattr(server, "make_server", lambda app: Server())
    assert re.search(r"search at http://127\.0\.0\.1:\d+ \(stop with Ctrl-C\)", run("serve", "--port=0"))
    with pytest.raises(ValueError, match=r"--host=0\.0\.0\.0 listens on all addresses"):
        run("serve", "--port=0", "--host=0.0.0.0")


def test_fusion_scales_similarities_even_if_all_are_negative():
    words = [(8.0, "page", 1), (4.0, "page", 2)]
    dense = [(-0.1, "page", 0), (-0.2, "page", 1), (-0.5, "page", 3)]
    expected = [(1.25 / 1.5, 1), (1.0 / 1.5, 0), (0.25 / 1.5, 2), (0.0, 3)]
    assert [(pytest.approx(score), row) for score, _, row in fuse(words, dense, 0.5)] == expected
    assert fuse([], dense[:1], 0.5) == [(pytest.approx(-1 / 1.5), "page", 0)]

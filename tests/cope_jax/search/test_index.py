"""Indexes have the expected recall, belong to their embeddings, and are written atomically."""

import json
import re
import shutil

import faiss
import numpy as np
import pytest

from cope_jax import Index
from cope_jax.search import index as index_module
from cope_jax.search.embedding_store import MANIFEST, read_item_ids, read_rows
from cope_jax.search.index import CODE_ITEMS, build_index, default_kind, exact_search, open_index
from data_prep.common.domains import DOMAINS
from tests.shop import write_embeddings

WIDTH, ROWS = 16, 900
SIZES = {"page": 1_510, "video": 2_003, "live": 1_600}


def clusters(count: int, seed: int) -> np.ndarray:
    """Returns unit vectors float32[count, WIDTH] around 100 centers, similar to trained embeddings."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(100, WIDTH))
    vectors = centers[rng.integers(100, size=count)] + 0.4 * rng.normal(size=(count, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    return {domain: clusters(size, seed) for seed, (domain, size) in enumerate(SIZES.items(), 1)}


@pytest.fixture(scope="module")
def embeddings(vectors, tmp_path_factory):
    """A folder of embeddings with two or three files per domain."""
    return write_embeddings(tmp_path_factory.mktemp("embeddings") / "of 100 products", vectors, rows=ROWS)


@pytest.fixture(scope="module")
def built(embeddings, tmp_path_factory):
    """Folder and description of an index of each kind, and the lines reported."""
    out, lines = tmp_path_factory.mktemp("indexes"), []
    kinds = index_module.KINDS
    descriptions = {kind: build_index(embeddings, out / kind, kind=kind, report=lines.append) for kind in kinds}
    return {kind: (out / kind, description) for kind, description in descriptions.items()}, lines


def brute_force(queries: np.ndarray, gallery: np.ndarray, top: int) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ gallery.T.astype(np.float64)), axis=1, kind="stable")[:, :top]


def test_exact_search_over_files_matches_brute_force(embeddings, vectors):
    queries = clusters(5, 9)
    scores, rows = exact_search(queries, embeddings, "video", 11)
    expected = brute_force(queries, vectors["video"], 11)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, (queries[:, None] * vectors["video"][expected]).sum(-1), atol=1e-6)


@pytest.mark.parametrize(("kind", "least"), [("flat", 1.0), ("hnsw", 0.97), ("codes", 0.97)])
@pytest.mark.parametrize("domain", DOMAINS)
def test_recall_of_each_kind(built, embeddings, vectors, kind, least, domain):
    """The recall of new queries is high and close to the recorded one."""
    folder, description = built[0][kind]
    queries = clusters(100, 9)
    scores, found = open_index(folder, embeddings).search(queries, domain, 10)
    expected = brute_force(queries, vectors[domain], 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    assert recall >= least
    assert description["recall_at_10"][domain] == pytest.approx(recall, abs=0.1)
    assert (np.diff(scores) <= 0).all()
    exact = (queries[:, None] * vectors[domain][found]).sum(-1)
    np.testing.assert_allclose(scores, exact, atol=1e-3 if kind == "codes" else 1e-5)


@pytest.mark.parametrize(("kind", "least"), [("flat", 1.0), ("hnsw", 0.95), ("codes", 0.999)])
def test_only_allowed_items_are_found(built, embeddings, vectors, kind, least):
    mask = np.arange(len(vectors["page"])) % 7 == 3
    queries, rows = clusters(100, 9), np.flatnonzero(mask)
    _, found = open_index(built[0][kind][0], embeddings).search(queries, "page", 10, mask)
    assert mask[found].all()
    expected = rows[brute_force(queries, vectors["page"][rows], 10)]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    assert recall >= least


def test_recall_is_reported(built):
    lines = built[1]
    assert len(lines) == 9
    assert lines[0] == "page: flat index of 1510 items, recall@10 1.000"
    assert re.fullmatch(r"video: hnsw index of 2003 items, recall@10 (0\.9\d\d|1\.000)", lines[4])
    assert re.fullmatch(r"live: codes index of 1600 items, recall@10 (0\.9[89]\d|1\.000)", lines[8])


def test_default_kind_depends_on_the_size():
    assert [default_kind(size) for size in (0, 200_000, 200_001)] == ["flat", "flat", "codes"]


def test_codes_take_16_bytes_and_the_vectors_stay_on_disk(built, embeddings):
    index = open_index(built[0]["codes"][0], embeddings)
    codes = faiss.downcast_index(index.domains["video"].index)
    assert (codes.ntotal, codes.codes.size() / (codes.ntotal + -codes.ntotal % 32)) == (2_003, 16)
    assert isinstance(index.vectors["video"], np.memmap)


def test_more_candidates_are_rescored_if_codes_are_coarse(tmp_path):
    """Random vectors are the hardest to code."""
    vectors = np.random.default_rng(0).normal(size=(3_000, 96)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    folder = write_embeddings(tmp_path / "random", {"page": vectors}, rows=3_000)
    description = build_index(folder, tmp_path / "index", kind="codes", report=lambda line: None)
    assert description["candidates"]["page"] > 100
    assert description["recall_at_10"]["page"] >= 0.99


def test_rows_are_read_across_files(embeddings, vectors):
    rows = np.array([2_002, 3, 900, 899, 3])
    np.testing.assert_array_equal(read_rows(embeddings, "video", rows), vectors["video"][rows])


def test_failed_build_keeps_the_old_index(built, embeddings, tmp_path, monkeypatch):
    out = tmp_path / "index"
    shutil.copytree(built[0]["flat"][0], out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr(index_module, "measure_recall", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_index(embeddings, out, kind="flat")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_index_is_replaced_completely(built, embeddings, tmp_path):
    out = tmp_path / "index"
    shutil.copytree(built[0]["hnsw"][0], out)
    (out / "leftover").touch()
    build_index(embeddings, out, kind="flat", report=lambda line: None)
    assert sorted(path.name for path in out.iterdir()) == ["index.json", "live.faiss", "page.faiss", "video.faiss"]
    assert set(open_index(out, embeddings).description["kinds"].values()) == {"flat"}


def test_index_of_other_embeddings(built, embeddings, tmp_path):
    others = tmp_path / "others"
    shutil.copytree(embeddings, others)
    own = built[0]["flat"][0]
    open_index(own, others)  # an identical copy
    shard = sorted((others / "page").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-9] + b"x" + shard.read_bytes()[-8:])
    with pytest.raises(ValueError, match=r"is the index of other embeddings than those in .*others: build it again"):
        open_index(own, others)


def test_an_index_is_opened_with_its_embeddings(embeddings, vectors, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(embeddings, folder)
    build_index(folder, folder / "index", kind="flat", report=lambda line: None)
    index, queries = Index.open(folder), vectors["video"][[5, 1999]]
    scores, rows = index.search(np.pad(queries, ((0, 0), (0, 3))), "video", top=2)  # shortened to the first 16 values
    assert index.ids["video"][rows[:, 0]].tolist() == read_item_ids(folder, "video")[[5, 1999]].tolist()
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)
    np.testing.assert_array_equal(Index.open(str(folder / "index")).search(queries, "video", 2)[1], rows)
    with pytest.raises(ValueError, match="unknown domain 'shop': choose one of page, video, live"):
        index.search(queries, "shop")
    for wrong in (queries[0], queries[:, :8]):
        with pytest.raises(ValueError, match=r"vectors are \[.*\]; they must be \[Q, 16\] or longer"):
            index.search(wrong, "video")


def test_missing_and_damaged_index_files(built, embeddings, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"build the index with `./run.sh search build`"):
        open_index(tmp_path, embeddings)
    out = tmp_path / "index"
    shutil.copytree(built[0]["flat"][0], out)
    (out / "live.faiss").write_bytes((out / "live.faiss").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"live.faiss is invalid, build the index again"):
        open_index(out, embeddings)
    shutil.copy(out / "page.faiss", out / "live.faiss")
    with pytest.raises(
        ValueError, match=r"live.faiss is invalid, build the index again: it has 1510 items instead of 1600"
    ):
        open_index(out, embeddings)
    (out / "live.faiss").unlink()
    with pytest.raises(FileNotFoundError, match=r"live.faiss: build the index again"):
        open_index(out, embeddings)
    (out / "index.json").write_text('{"format": "another"}')
    with pytest.raises(ValueError, match="has the format 'another', not 'cope-jax index, version 1': build it again"):
        open_index(out, embeddings)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "codes"])
@pytest.mark.parametrize("number", [0, 1])
def test_index_files_of_other_types_are_not_loaded(built, embeddings, tmp_path, monkeypatch, kind, number):
    """At the beginning of a file or, if it has one, for the index inside of it."""
    out = shutil.copytree(built[0][kind][0], tmp_path / "index")
    data = (out / "page.faiss").read_bytes()
    places = [0, data.find(b"IPfs" if kind == "codes" else b"IxFI", 4)]
    if places[number] < 0:
        return
    (out / "page.faiss").write_bytes(data[: places[number]] + b"IwFl" + data[places[number] + 4 :])
    monkeypatch.setattr(index_module.faiss, "read_index", lambda path: 1 / 0)
    with pytest.raises(ValueError, match=r"page.faiss is invalid, .* it has an index of type b'IwFl'"):
        open_index(out, embeddings)


def test_other_transforms_and_vectors_are_not_loaded(built, embeddings, tmp_path):
    out = shutil.copytree(built[0]["codes"][0], tmp_path / "index")
    (out / "page.faiss").write_bytes((out / "page.faiss").read_bytes().replace(b"LTra", b"PcAm", 1))
    with pytest.raises(ValueError, match=r"page.faiss is invalid, .* it has the transforms \(1, b'PcAm'\)"):
        open_index(out, embeddings)
    shutil.copy(built[0]["codes"][0] / "page.faiss", out)
    shutil.copy(out / "live.npy", out / "page.npy")
    with pytest.raises(ValueError, match=r"page.npy has float16\[1600, 16\], build the index again"):
        open_index(out, embeddings)
    np.save(out / "page.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"page.npy is invalid, build the index again"):
        open_index(out, embeddings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "is not valid JSON .*: build the index again"),
        ({"kinds": {"page": "flat"}}, "does not describe an index, build it again: KeyError"),
        ({"kinds": {domain: "tree" for domain in DOMAINS}}, "page.faiss is invalid, .* an index of type b'IxFI'"),
        ({"sizes": [1, 2, 3]}, "does not describe an index, build it again: TypeError"),
    ],
)
def test_invalid_descriptions(built, embeddings, tmp_path, changes, message):
    out = shutil.copytree(built[0]["flat"][0], tmp_path / "index")
    description = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text("" if changes is None else json.dumps(description | changes))
    with pytest.raises(ValueError, match=message):
        open_index(out, embeddings)


def test_invalid_arguments_and_incomplete_embeddings(embeddings, tmp_path):
    with pytest.raises(ValueError, match="unknown kind of index 'tree': choose one of flat, hnsw, codes"):
        build_index(embeddings, tmp_path / "out", kind="tree")
    with pytest.raises(FileNotFoundError, match=r"name a folder that `./run.sh embed` wrote"):
        build_index(tmp_path, tmp_path / "out")
    few = tmp_path / "few"
    shutil.copytree(embeddings, few)
    manifest = json.loads((few / MANIFEST).read_text())
    (few / MANIFEST).write_text(json.dumps(manifest | {"items": SIZES | {"live": 9}}))
    with pytest.raises(
        ValueError, match=f"an index of codes needs {CODE_ITEMS} items per domain, not .*9 live items: choose"
    ):
        build_index(few, tmp_path / "out", kind="codes")
    (few / MANIFEST).write_text((embeddings / MANIFEST).read_text())
    sorted((few / "page").iterdir())[0].unlink()
    with pytest.raises(
        ValueError, match=r"1 files of embeddings are missing, finish embedding first: .*page/00000-of-00002"
    ):
        build_index(few, tmp_path / "out", kind="flat")


def test_domain_without_items_has_an_index(tmp_path):
    folder = write_embeddings(tmp_path / "none", dict.fromkeys(DOMAINS, np.zeros((0, 3), np.float32)), rows=5)
    build_index(folder, tmp_path / "index", report=lambda line: None)
    _, rows = open_index(tmp_path / "index", folder).search(np.zeros((1, 3), np.float32), "page", 2)
    assert rows.tolist() == [[-1, -1]]

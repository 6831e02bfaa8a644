"""Scores that `mteb` computes for a run equal this project's, on tasks of its own class built from local data."""

import json

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value, Video
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from cope_jax import Embedder
from cope_jax.data.records import open_records
from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.evaluation.metrics.ranks import ranks_between
from cope_jax.evaluation.metrics.retrieval import retrieval_metrics
from cope_jax.mteb_encoder import MtebEncoder, score
from data_prep.common.domains import direction_name, domain_pairs
from data_prep.synthetic.videos import encode

FEATURES = {"text": Value("string"), "image": Image(), "video": Video()}
EQUAL = {"hit_rate_at_1": "r1", "hit_rate_at_5": "r5", "hit_rate_at_10": "r10", "map_at_1000": "map"}
EQUAL["ndcg_at_10"] = "ndcg10"


def relevant(a: np.ndarray, b: np.ndarray) -> dict[str, dict[str, int]]:
    """Judgments in the form of pytrec_eval, from the product ids of queries and gallery."""
    pairs = ((q, {f"d{g}": 1 for g, two in enumerate(b) if {*one} & {*two} - {-1}}) for q, one in enumerate(a))
    return {f"q{q}": own for q, own in pairs if own}


def task_of(category: str, modalities: list[str], queries: Dataset, corpus: Dataset, judgments) -> AbsTaskRetrieval:
    class LocalTask(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Local", description="Local data.", dataset={"path": "local/data", "revision": "1"},
            type="Any2AnyRetrieval", category=category, modalities=modalities, eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="ndcg_at_10", reference=None,
        )  # fmt: skip

        def load_data(self, num_proc=None, **_):
            split = {"queries": queries, "corpus": corpus, "relevant_docs": judgments, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return LocalTask()


def dataset(prefix: str, **columns) -> Dataset:
    rows = {"id": [f"{prefix}{i}" for i in range(len(next(iter(columns.values()))))], **columns}
    return Dataset.from_dict(rows, Features({"id": Value("string"), **{name: FEATURES[name] for name in columns}}))


@pytest.fixture(scope="module")
def items(workdir):
    records = open_records(Embedder.from_workdir(workdir).config.data.data_dir, "test").items
    return {domain: [records[domain][row] for row in range(8)] for domain in ("page", "video")}


@pytest.mark.slow
def test_scores_of_mteb_equal_this_projects(workdir, items, tmp_path):
    embedder = Embedder.from_workdir(workdir)
    model = MtebEncoder(embedder, "tiny")
    videos = []
    for number, item in enumerate(items["video"]):
        encode(tmp_path / f"{number}.mp4", item.frames)
        videos.append(str(tmp_path / f"{number}.mp4"))
    pictures = [{"bytes": item.frames[0], "path": None} for item in items["page"]]
    texts = [item.text for item in items["page"]]
    products = {domain: np.array([item.product_ids[:1] for item in own]) for domain, own in items.items()}
    images = [item.frames[0] for item in items["page"]]
    embed = embedder.embed
    pages = {"image": pictures, "text": texts}
    cases = [
        ("it2v", pages, {"video": videos}, "video", embed("page", images=images, texts=texts)),
        ("t2i", {"text": texts}, {"image": pictures}, "page", embed("page", texts=texts)),
    ]
    galleries = {"video": embed("video", frames=videos), "page": embed("page", images=images)}
    for category, queries, corpus, domain, vectors in cases:
        own = retrieval_metrics(ranks_between(vectors, galleries[domain], products["page"], products[domain])[0])
        judgments = relevant(products["page"].tolist(), products[domain].tolist())
        task = task_of(
            category, sorted({*queries, *corpus}), dataset("q", **queries), dataset("d", **corpus), judgments
        )
        assert f"Local test default: hit_rate_at_1 {own['r1']:.3f}, " in score(model, [task], tmp_path / "scores")
        ((scores,),) = json.loads((tmp_path / "scores/Local.json").read_text())["scores"].values()
        for theirs, ours in EQUAL.items():
            assert scores[theirs] == pytest.approx(own[ours], abs=1e-5), (category, theirs)  # it rounds to 5 digits


def test_metrics_of_the_evaluation_equal_those_of_pytrec_eval(workdir):
    """All directions of the synthetic test split, with as many positives per query as there are, to 1e-6."""
    evaluation = evaluate(workdir)
    assert evaluation.embedded
    found = evaluation.embedded.items
    compared = 0
    for source, target in domain_pairs(found):
        for a, b in ((source, target), (target, source)):
            judgments = relevant(found[a].products.tolist(), found[b].products.tolist())
            scores = found[a].vectors.astype(np.float64) @ found[b].vectors.T.astype(np.float64)
            run = {f"q{q}": {f"d{g}": value for g, value in enumerate(row)} for q, row in enumerate(scores.tolist())}
            run = {name: run[name] for name in judgments}
            per_query = calculate_retrieval_scores(run, judgments, (1, 5, 10, 1000)).all_scores.values()
            own = evaluation.metrics["retrieval"][direction_name(a, b, found)]
            for theirs, ours in EQUAL.items():
                name = (
                    theirs.replace("hit_rate_at", "success").replace("map_at", "map_cut").replace("ndcg_at", "ndcg_cut")
                )
                assert np.mean([query[name] for query in per_query]) == pytest.approx(own[ours], abs=1e-6), name
                compared += 1
    assert compared == 6 * len(EQUAL)


def test_unknown_domains_are_errors(workdir):
    with pytest.raises(ValueError, match=r"--domains has video:spin; expected one of video, image, text, and one"):
        MtebEncoder(Embedder.from_workdir(workdir), "tiny", {"video": "spin"})

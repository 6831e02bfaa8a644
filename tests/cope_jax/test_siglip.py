"""Tests that a small SigLIP 2 goes the whole way: zero-shot evaluation, fine-tuning, search, export."""

import numpy as np
import pytest
from transformers import ChineseCLIPConfig, ChineseCLIPModel

from configs import catalog
from cope_jax import Embedder, evaluate
from cope_jax.data.records import open_records
from cope_jax.data.tokenizer import save_tokenizer, train_wordpiece
from cope_jax.evaluation.evaluate_run import evaluate as evaluate_run
from cope_jax.evaluation.results import baseline_name
from cope_jax.export import export_run
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.pretrained import start_from_weights
from cope_jax.search.library import open_library
from cope_jax.training.loop import train
from tests.conftest import SIGLIP2_WORDS, write_siglip2

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # programs of a model of its own are compiled


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A folder that transformers wrote, like that of a SigLIP 2 on the hub, and the model."""
    folder = tmp_path_factory.mktemp("weights") / "siglip2-tiny"
    return folder, write_siglip2(folder)


@pytest.fixture(scope="module")
def zero_shot(siglip, data_dir, tmp_path_factory):
    """Work directory that `eval --zero_shot` makes."""
    workdir = tmp_path_factory.mktemp("zero-shot") / "run"
    evaluate.make_zero_shot_run(str(siglip[0]), data_dir, workdir)
    return workdir


@pytest.fixture(scope="module")
def config(siglip, data_dir):
    """Config of a run of two steps that starts from the weights."""
    fields = {"model.init_from": str(siglip[0]), "train.steps": 2, "optimizer.warmup_steps": 1, "train.batch_size": 8}
    return start_from_weights(resolve_config(catalog.get_config(str(data_dir)), fields))


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    """Work directory of that run."""
    folder = tmp_path_factory.mktemp("fine-tuned") / "run"
    train(config, folder)
    return folder


def test_without_training_items_are_embedded_as_by_transformers(siglip, zero_shot):
    _, model = siglip
    photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    found = Embedder.from_workdir(zero_shot, 0).embed("page", images=[photo, photo, None], texts=["ad", "", "ad"])
    with torch.no_grad():
        pixels = torch.tensor(photo.transpose(2, 0, 1)[None] / 127.5 - 1, dtype=torch.float32)
        image = model.get_image_features(pixels).pooler_output[0].numpy()
        ids = torch.tensor([[SIGLIP2_WORDS.index("a"), SIGLIP2_WORDS.index("d"), 1, *[0] * 9]])
        text = model.get_text_features(ids).pooler_output[0].numpy()
    image, text = image / np.linalg.norm(image), text / np.linalg.norm(text)
    both = (image + text) / np.linalg.norm(image + text)
    np.testing.assert_allclose(found, [both, image, text], atol=1e-5)


def test_without_training_chinese_texts_are_embedded_as_by_transformers(data_dir, tmp_path):
    sizes = {"hidden_size": 12, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = train_wordpiece(["红色连衣裙"], 40)
    text, vision = sizes | {"vocab_size": len(tokenizer)}, sizes | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).eval()
    model.save_pretrained(tmp_path / "weights")
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    for file in (tmp_path / "tokenizer").iterdir():
        file.rename(tmp_path / "weights" / file.name)
    evaluate.make_zero_shot_run(str(tmp_path / "weights"), data_dir, tmp_path / "run")
    found = Embedder.from_workdir(tmp_path / "run", 0).embed("page", texts=["红裙"])[0]
    ids = torch.tensor([tokenizer.backend_tokenizer.encode("红裙").ids])
    with torch.no_grad():
        expected = model.get_text_features(ids, attention_mask=torch.ones_like(ids)).pooler_output[0].numpy()
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


@pytest.mark.slow
def test_the_baseline_of_a_fine_tuned_run_is_the_model_without_training(zero_shot, workdir):
    assert baseline_name(load_config(workdir)) == "zero-shot"
    start, alone, trained = (
        evaluate_run(path, step=step) for path, step in ((workdir, 0), (zero_shot, 0), (workdir, 2))
    )
    assert start.metrics["retrieval"] == alone.metrics["retrieval"] != trained.metrics["retrieval"]


@pytest.mark.slow
def test_fine_tuned_items_are_searched_and_the_export_embeds_the_same(data_dir, workdir, tmp_path):
    library = open_library(workdir, report=lambda line: None)
    item = int(open_records(str(data_dir), "test").items["video"][0].item_id)
    assert len(library.search_item("video", item, among=["page"], top=3).hits) == 3
    export_run(workdir, tmp_path / "export")
    photo = np.random.default_rng(1).integers(0, 256, (20, 16, 3), np.uint8)
    own, exported = Embedder.from_workdir(workdir), Embedder.from_export(tmp_path / "export")
    vectors = [embedder.embed("page", images=[photo], texts=["red"]) for embedder in (own, exported)]
    np.testing.assert_allclose(*vectors, atol=1e-5)
    alone = tmp_path / "alone"
    evaluate.make_zero_shot_run(str(tmp_path / "export"), data_dir, alone)
    started = Embedder.from_workdir(alone, 0).embed("page", images=[photo], texts=["red"])
    np.testing.assert_allclose(started, vectors[0], atol=1e-5)

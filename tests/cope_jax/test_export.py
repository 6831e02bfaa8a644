"""Exported models have the run's embeddings, without its code; incomplete exports are removed."""

import json
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from threading import Thread

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save

from cope_jax import Embedder, export, exported
from cope_jax.data.records import open_records
from cope_jax.data.tokenizer import encode, load_tokenizer
from cope_jax.evaluation.embed_items import load_run
from cope_jax.evaluation.evaluate_run import embed_split
from cope_jax.evaluation.results import find_step
from cope_jax.model_card import UNKNOWN, model_card
from cope_jax.push import push
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import evaluation_batches
from cope_jax.runs.model import split_model
from cope_jax.training.loop import train
from data_prep.common.domains import DOMAINS
from tests.hub import TOKEN, StandInHub

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(make_tiny_config, tmp_path_factory):
    """A tiny run whose videos use no text, so that domains differ, and whose layers are unrolled, as in the demo."""
    folder = tmp_path_factory.mktemp("run")
    changes = {"model.text_domains": ("page", "live"), "data.text_templates": (("page", "a {}!"),)}
    train(make_tiny_config(changes | {"model.scan_layers": False}), folder)
    return folder


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    """Its export."""
    out = tmp_path_factory.mktemp("exports") / "tiny"
    assert export.export_run(workdir, out) < 1e-5
    return out


def test_embeddings_equal_those_of_the_run(workdir, folder):
    """Evaluation shards over eight devices, the export runs on one."""
    config, tokenizer = load_config(workdir), load_tokenizer(workdir / "tokenizer")
    step = find_step(workdir, "latest", config)
    expected = embed_split(load_run(config, workdir, step), step=step)
    model = exported.load(folder)
    for domain in DOMAINS:
        batch = next(iter(evaluation_batches(config, tokenizer, domain=domain, batch_size=5)))[domain]
        found = model.programs[domain](model.weights, batch["frames"], batch["frame_mask"], batch["text"])
        np.testing.assert_allclose(found, expected[domain].vectors[:5], atol=1e-5)


def test_weights_are_named_by_path(workdir, folder):
    weights = load_file(folder / "model.safetensors")
    assert weights["vision/project/kernel"].shape == (16, 16)
    assert weights["fusion/video/vision/norm/mean"].any()  # running statistics
    assert not any(name.startswith(("params", "model", "fusion/video/text")) for name in weights)


def test_texts_are_put_into_the_template_of_their_domain(workdir, folder):
    config, tokenizer = load_config(workdir), load_tokenizer(workdir / "tokenizer")
    items = [open_records(config.data.data_dir, "test").items["page"][row] for row in range(3)]
    batch = next(iter(evaluation_batches(config, tokenizer, domain="page", batch_size=3)))["page"]
    filled = encode(tokenizer, [f"a {item.text}!" for item in items], config.data.text_length)
    np.testing.assert_array_equal(batch["text"], filled)
    texts, frames = [item.text for item in items], [item.frames for item in items]
    expected = Embedder.from_workdir(workdir).embed("page", frames=frames, texts=texts)
    found = exported.load(folder).embed("page", batch["frames"], texts, batch["frame_mask"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - exported.load(folder).embed("page", batch["frames"], [""] * 3)).max() > 1e-3


def test_loader_embeds_texts_and_frames(folder):
    model, rng = exported.load(folder), np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 1, 16, 16, 3), dtype=np.uint8)
    vectors = model.embed("page", frames, ["red dress", "", "a long text of many words " * 9])
    assert vectors.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(model.embed("page", frames[:1], ["red dress"]), vectors[:1], atol=1e-5)
    assert np.abs(model.embed("page", frames[:1], ["red dress and blue shoes"]) - vectors[:1]).max() > 1e-3
    clip = rng.integers(0, 256, (1, 3, 16, 16, 3), dtype=np.uint8)
    mask = np.array([[True, True, False]])
    changed = clip.copy()
    changed[:, 2] = 0
    first, second = (model.embed("video", frames, [""], mask) for frames in (clip, changed))
    np.testing.assert_array_equal(first, second)


def test_loader_tokenizes_like_training(workdir, folder):
    texts = ["红色连衣裙 夏季新款", "", "one two three four five six seven eight nine ten eleven twelve"]
    expected = encode(load_tokenizer(workdir / "tokenizer"), texts, 12)
    np.testing.assert_array_equal(exported.load(folder).tokens(texts, 12), expected)


def test_loader_works_alone(folder, tmp_path):
    """Copies of the loader and the export work in a process that cannot import this package."""
    shutil.copy(ROOT / "cope_jax/exported.py", tmp_path / "loader.py")
    shutil.copytree(folder, tmp_path / "moved")
    code = (
        "import sys, numpy as np, loader\n"
        "vectors = loader.load('moved').embed('page', np.zeros((2, 1, 16, 16, 3), np.uint8), ['a', ''])\n"
        "print(vectors.shape, {'cope_jax', 'flax', 'transformers'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "(2, 16) set()\n", done.stderr


def test_programs_support_all_platforms_and_batch_sizes(folder):
    for domain in DOMAINS:
        program = jax.export.deserialize(bytearray((folder / f"{domain}.stablehlo").read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu")
        assert str(program.out_avals[0].shape) == "(B, 16)"


def test_products_have_the_highest_precision(folder):
    program = jax.export.deserialize(bytearray((folder / "page.stablehlo").read_bytes())).mlir_module()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 5
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.slow
def test_fusion_transformer_in_bfloat16_can_be_exported(make_tiny_config):
    """It is only lowered; the tests of models cover its values."""
    fusion = {"kind": "transformer", "width": 8, "depth": 1, "heads": 2}
    changes = {f"model.fusion.{name}": value for name, value in fusion.items()}
    config = make_tiny_config(changes | {"model.dtype": "bfloat16"})
    graphdef, initialize = split_model(config, vocab_size=50)
    program = jax.export.deserialize(bytearray(export.export_program(graphdef, initialize(), "video", config)))
    assert str(program.in_avals[-1].shape) == "(B, 12)"


@pytest.mark.slow
def test_earlier_step_can_be_exported(workdir, folder, tmp_path):
    export.export_run(workdir, tmp_path / "four", step=4)
    steps = [json.loads((place / "config.json").read_text())["step"] for place in (tmp_path / "four", folder)]
    assert steps == [4, 6]
    four, six = (load_file(place / "model.safetensors") for place in (tmp_path / "four", folder))
    assert not np.array_equal(four["vision/project/kernel"], six["vision/project/kernel"])


def test_existing_folder_is_not_overwritten(workdir, folder):
    with pytest.raises(ValueError, match="tiny exists already; choose another --out or remove it"):
        export.export_run(workdir, folder)


@pytest.mark.slow
def test_export_with_wrong_weights_is_removed(workdir, tmp_path, monkeypatch):
    def save_reversed(weights):
        return save(weights | {"vision/project/kernel": weights["vision/project/kernel"][::-1].copy()})

    monkeypatch.setattr(export, "save", save_reversed)
    with pytest.raises(ValueError, match=r"model.safetensors and page.stablehlo give embeddings that differ"):
        export.export_run(workdir, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_export_with_wrong_program_is_removed(workdir, tmp_path, monkeypatch):
    original = export.export_program

    def swapped(graphdef, model, domain, config):
        return original(graphdef, model, "video" if domain == "live" else domain, config)

    monkeypatch.setattr(export, "export_program", swapped)
    with pytest.raises(ValueError, match=r"model.safetensors and live.stablehlo give embeddings that differ"):
        export.export_run(workdir, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_error_for_a_run_without_checkpoints_says_what_to_do(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(FileNotFoundError, match="train first"):
        export.export_run(tmp_path / "run", tmp_path / "out")


def test_loader_names_missing_files_and_unknown_formats(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"name a folder that `./run.sh export` wrote"):
        exported.load(tmp_path)
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut/live.stablehlo").unlink()
    (tmp_path / "cut/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model.safetensors, live.stablehlo: export again"):
        exported.load(tmp_path / "cut")
    (tmp_path / "cut/config.json").write_text('{"format": "cope-jax export, version 9"}')
    with pytest.raises(ValueError, match="version 9'; this loader reads 'cope-jax export, version 1'"):
        exported.load(tmp_path / "cut")


def test_files_are_readable_by_all(folder):
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o644}


def test_programs_that_call_other_functions_are_not_loaded(folder, tmp_path):
    out = shutil.copytree(folder, tmp_path / "copy")
    program = (out / "live.stablehlo").read_bytes()
    assert program.count(b"shape_assertion") == 1
    (out / "live.stablehlo").write_bytes(program.replace(b"shape_assertion", b"other_functions"))
    with pytest.raises(ValueError, match=r"live.stablehlo calls functions .* of this project calls: other_functions"):
        exported.load(out)


@pytest.mark.parametrize("change", [lambda data: b"", lambda data: data[:-999], lambda data: b"junk" + data])
def test_invalid_programs_and_weights_are_not_loaded(folder, tmp_path, change):
    out = shutil.copytree(folder, tmp_path / "copy")
    (out / "page.stablehlo").write_bytes(change((out / "page.stablehlo").read_bytes()))
    with pytest.raises(ValueError, match=r"page.stablehlo is not a valid program; export again"):
        exported.load(out)
    shutil.copy(folder / "page.stablehlo", out)
    (out / "model.safetensors").write_bytes(change((out / "model.safetensors").read_bytes()))
    with pytest.raises(ValueError, match=r"model.safetensors is invalid .*; export again"):
        exported.load(out)


@pytest.mark.parametrize(
    "changes",
    [
        {"domains": None},
        {"domains": {"page": {"frames": 1, "image_size": 16}}},
        {"domains": {"page": {"frames": 1, "image_size": 10**12, "text_length": 12}}},
        {"domains": {"../page": {"frames": 1, "image_size": 16, "text_length": 12}}},
        {"embedding": "16"},
    ],
)
def test_invalid_descriptions_are_not_loaded(folder, tmp_path, changes):
    out = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((out / "config.json").read_text()) | changes
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json does not describe an export: .*; export again"):
        exported.load(out)


def test_a_full_disk_is_reported_and_nothing_left(workdir, tmp_path):
    """No file may grow beyond 60 kB; a program has less, the weights more."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limit[1]))
        with pytest.raises(OSError, match=r"model.safetensors"):
            export.export_run(workdir, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_terminated_export_leaves_nothing(workdir, tmp_path):
    code = f"""
import sys
from cope_jax import export
export.export_program = lambda *_: print("writing", flush=True) or __import__("time").sleep(60)
sys.argv[1:] = ["--workdir={workdir}", "--out={tmp_path}/exports/out"]
export.define_flags()
export.cli.run("export", export.main)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"writing\n"
        process.terminate()
        assert process.wait(timeout=60) == 143
    assert list((tmp_path / "exports").iterdir()) == []


def test_loader_refuses_regular_expressions_that_could_take_forever(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy/tokenizer/tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{file} has the regular expression '\(a\+\)\+\$', which could take forever"):
        exported.load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("domain", "frames", "mask", "message"),
    [
        ("shop", (2, 1, 16, 16, 3), None, "unknown domain 'shop': choose one of page, video, live"),
        (
            "page",
            (3, 1, 16, 16, 3),
            None,
            r"page frames are uint8\[3, 1, 16, 16, 3\]; 2 texts need uint8\[2, 1",
        ),
        ("page", (2, 1, 16, 16, 3), (2, 3), r"frame_mask is bool\[2, 3\]; it must be bool\[2, 1\]"),
    ],
)
def test_invalid_inputs(folder, domain, frames, mask, message):
    mask = None if mask is None else np.ones(mask, bool)
    with pytest.raises(ValueError, match=message):
        exported.load(folder).embed(domain, np.zeros(frames, np.uint8), ["a", "b"], mask)


def test_texts_are_an_iterable_but_not_a_string(folder):
    model, frames = exported.load(folder), [np.zeros((1, 16, 16, 3), np.uint8)] * 2
    assert model.embed("page", frames, iter(["a", ""])).shape == (2, 16)
    with pytest.raises(ValueError, match="texts is the string 'ab'; it must be a list with one text per item"):
        model.embed("page", frames, "ab")


def test_export_of_a_missing_average(workdir, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoints/6 has no moving average: .*average_decay=0"):
        export.export_run(workdir, tmp_path / "out", average=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub, with an empty cache; the user is logged in."""
    with StandInHub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


def test_an_export_is_published_and_loaded_again(folder, hub):
    assert push(folder, "someone/tiny") == f"{hub.endpoint}/someone/tiny"
    files = hub.repositories["someone/tiny"]
    assert {name: (folder / name).read_bytes() for name in files if name != "README.md"} == {
        name: content for name, content in files.items() if name != "README.md"
    }
    assert 'Embedder.from_pretrained("someone/tiny")' in files["README.md"].decode()
    files["modeling.py"] = files["pytorch_model.bin"] = b"\x80\x04N."
    embedder = Embedder.from_pretrained("someone/tiny")
    own = Embedder.from_export(folder)
    assert embedder.config == own.config
    photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found, expected = (model.embed("page", images=[photo], texts=["red"]) for model in (embedder, own))
    np.testing.assert_array_equal(found, expected)
    downloaded = {path.name for path in Path(constants.HF_HUB_CACHE).rglob("snapshots/*/*")}
    assert downloaded == {"config.json", "model.safetensors", "tokenizer", *(f"{name}.stablehlo" for name in DOMAINS)}
    files["live.stablehlo"] = files["live.stablehlo"].replace(b"shape_assertion", b"other_functions")
    with pytest.raises(ValueError, match=r"live.stablehlo calls functions that no export of this project calls"):
        Embedder.from_pretrained("someone/tiny")
    with pytest.raises(FileNotFoundError, match=r"name is 'someone/none', which is neither a local folder nor avail"):
        Embedder.from_pretrained("someone/none")


def test_only_whole_exports_are_published_by_users_who_are_logged_in(folder, hub, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the repository is 'tiny'; it must be OWNER/NAME"):
        push(folder, "tiny")
    out = shutil.copytree(folder, tmp_path / "copy")
    (out / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"copy lacks README.md, its model card: export again"):
        push(out, "someone/tiny")
    (out / "page.stablehlo").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"page.stablehlo is not a valid program"):
        push(out, "someone/tiny")
    assert not hub.repositories
    monkeypatch.setenv("HF_TOKEN", TOKEN[:-1])
    with pytest.raises(ValueError, match=r"did not accept 'someone/tiny': .*401.* log in with `hf auth login`"):
        push(folder, "someone/tiny")


def test_published_files_do_not_name_folders_of_the_machine(workdir, folder):
    data_dir = Path(load_config(workdir).data.data_dir)
    assert json.loads((folder / "config.json").read_text())["run"]["data"]["data_dir"] == data_dir.name
    texts = [(folder / name).read_text() for name in ("config.json", "README.md")]
    assert not any(str(data_dir.parent) in text or str(workdir) in text for text in texts)


def test_the_card_of_a_run_without_results(folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: cope-jax\npipeline_tag: feature-extraction\nlicense: unknown\ntags:\n")
    assert "None: the run was not evaluated at this step before it was exported." in card
    assert card.count(UNKNOWN) == 2
    assert "24 products, " in card


def test_the_card_has_results_with_intervals_and_the_license(workdir, tmp_path):
    shares = {"r1": 0.5, "r10": 0.75, "map": 0.625, "queries": 1416, "gallery": 425}
    metrics = {
        "retrieval": {"p2v": shares},
        "retrieval_mean": {"mean_r1": 0.5, "mean_r10": 0.75, "mean_map": 0.625},
        "intervals": {
            "products": 220,
            "retrieval": {"p2v": {"r1": [0.4375, 0.5625]}},
            "retrieval_mean": {"mean_r1": [0.4375, 0.5625]},
        },
        "chance": {"p2v": 0.005},
    }
    before = {"retrieval_mean": {"mean_r1": 0.0078125}}
    for step, results in ((6, metrics), (0, before)):
        (tmp_path / f"eval/{step}").mkdir(parents=True)
        (tmp_path / f"eval/{step}/metrics.json").write_text(json.dumps(results))
    config = replace_fields(load_config(workdir), {"model.vision.init_from": "google/siglip2-base-patch16-224"})
    options = {"title": "Shoes", "step": 6, "license": "cc-by-4.0"}
    card = model_card(config, tmp_path, **options)
    assert "license: cc-by-4.0\nbase_model:\n- google/siglip2-base-patch16-224\ntags:\n" in card
    assert (
        "| page → video | 0.500 (0.438 – 0.562) | 0.750 | 0.625 | 1,416 | 425 |\n| mean | 0.500 (0.438 – 0.562) |"
        in card
    )
    assert "(step 6, split `test`, 220 products):" in card
    assert "A random order has R@1 0.005. The untrained model has a mean R@1 of 0.008." in card
    assert card.count("\n## ") == 5
    assert "They start from google/siglip2-base-patch16-224, whose license applies as well." in card
    assert "None: a mean" in model_card(config, tmp_path, **options, other="a mean")

"""Evaluations during training: their results, the best step, and that kills do not change them."""

import io
import json
import os
import random
import re
import shutil
import signal
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from benchmarks import chaos
from benchmarks.chaos import Kill
from cope_jax import Embedder
from cope_jax.data.records import InvalidItemError, ItemRecords, Product
from cope_jax.evaluation import evaluate_run as run
from cope_jax.evaluation.embed_items import LoadedRun
from cope_jax.evaluation.evaluate_run import evaluate
from cope_jax.evaluation.probe import Probe
from cope_jax.evaluation.results import read_metrics
from cope_jax.parallel.mesh import make_mesh
from cope_jax.runs.checkpoints import Checkpoints, TrainState
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import run_tokenizer, training_batches
from cope_jax.search import __main__ as search_command
from cope_jax.search.embedding_store import embed_to_parquet, read_vectors
from cope_jax.search.library import open_library
from cope_jax.training import loop
from cope_jax.training.evaluations import Evaluations, evaluate_in_full
from cope_jax.training.loop import locked_workdir, train
from cope_jax.training.signals import Stopped, StopSignal
from cope_jax.training.watchdog import Watchdog

pytestmark = pytest.mark.usefixtures("shared_plans")

# Evaluations of 7 products at steps 2, 4 and 5. Report windows are open at saves.
CHANGES = {
    "train.evaluate_every": 2,
    "train.evaluate_products": 7,
    "train.average_decay": 0.75,
    "train.best_by": "average_mean_map",
    "train.keep_checkpoints": 2,
    "train.checkpoint_every": 3,
    "train.log_every": 3,
}


@pytest.fixture(scope="module")
def make_config(make_quick_config):
    """A function that makes the config of a run with evaluations during training and a moving average."""
    return lambda: make_quick_config(**CHANGES)


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """A work directory of such a run, without interruptions."""
    workdir = tmp_path_factory.mktemp("evaluated")
    train(make_config(), workdir)
    return workdir


def found_in(workdir):
    """Step → metrics of `evaluations.jsonl`."""
    lines = (workdir / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    return {line.pop("step"): line for line in map(json.loads, lines)}


def stored(workdir, step):
    """The state of a checkpoint as NumPy arrays."""
    with ocp.StandardCheckpointer() as reader:
        return jax.tree.map(np.asarray, reader.restore(workdir.absolute() / f"checkpoints/{step}/state"))


def assert_same_run(one, other):
    for name in ("evaluations.jsonl", "metrics.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, stored(one, 5), stored(other, 5))


@pytest.mark.slow
def test_some_products_are_evaluated_on_schedule_and_all_at_the_end(finished):
    found = found_in(finished)
    assert list(found) == [2, 4, 5]
    for average, prefix in ((False, ""), (True, "average_")):
        of_seven = evaluate(finished, step=5, subset=7, average=average).metrics
        for name, value in of_seven["retrieval_mean"].items():
            assert found[5][prefix + name] == pytest.approx(value, rel=1e-5)
        for name, metrics in of_seven["retrieval"].items():
            assert found[5][f"{prefix}{name}_r1"] == pytest.approx(metrics["r1"], rel=1e-5)
        assert read_metrics(finished, 5, average=average)["evaluated"]["subset"] is None
    assert read_metrics(finished, 5)["retrieval"] != read_metrics(finished, 5, average=True)["retrieval"]


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_evaluated_on_all_items(finished):
    found = found_in(finished)
    best_at_last_save, best = (
        max(steps, key=lambda step: (found[step]["average_mean_map"], step)) for steps in ((2, 4), (2, 4, 5))
    )
    with Checkpoints(finished) as checkpoints:
        assert set(checkpoints.steps()) == {best_at_last_save, 4, 5}
    assert all(read_metrics(finished, best, average=average) for average in (False, True))


@pytest.mark.slow
def test_search_embeds_queries_with_the_average_too(finished, monkeypatch):
    library = open_library(finished, step=5, average=True, report=lambda line: None)
    monkeypatch.setattr(search_command, "FLAGS", SimpleNamespace(workdir=str(finished)))
    item = library.records.items["page"][0]
    looked_for, of_model = (
        embedder.embed("page", frames=[item.frames], texts=[item.text])
        for embedder in (search_command.load_embedder(library), Embedder.from_workdir(finished, step=5))
    )
    _, vectors = next(read_vectors(library.embeddings, "page"))
    np.testing.assert_allclose(looked_for[0], vectors[0], atol=1e-5)
    assert np.abs(looked_for - of_model).max() > 1e-4
    with pytest.raises(ValueError, match="average: True stored, False requested"):
        embed_to_parquet(finished, library.embeddings, split="test", step=5)


@pytest.mark.slow
def test_a_run_ends_well_without_few_shot_results(finished, make_config, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    train(replace_fields(make_config(), {"eval.shots": 50}), tmp_path / "run")
    assert "step 5, all items: mean R@1 0." in capsys.readouterr().out
    metrics = read_metrics(tmp_path / "run", 5)
    assert (metrics["few_shot"], len(metrics["empty"]["few_shot"])) == ({}, 6)


@pytest.mark.slow
def test_an_invalid_best_checkpoint_does_not_fail_the_end_of_a_run(finished, make_config, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    lines = [{"step": 4, "average_mean_map": 0.9}, {"step": 5, "average_mean_map": 0.5}]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(run / "eval/4", ignore_errors=True)
    (run / "checkpoints/4/manifest.json").unlink()
    train(make_config(), run)
    assert "the checkpoint of step 4 is invalid, moved to" in capsys.readouterr().out


@pytest.mark.slow
def test_tensorboard_shows_the_first_examples_metrics_and_histograms_of_embeddings(finished, make_config, read_records):
    (path,) = (finished / "tensorboard").iterdir()
    shown = {}
    for record in read_records(path):
        event = Event.FromString(record)
        for value in event.summary.value:
            shown.setdefault(value.tag, {})[event.step] = value
    assert shown["retrieval/average_mean_r1"][4].simple_value == pytest.approx(
        found_in(finished)[4]["average_mean_r1"], rel=1e-5
    )
    for name in ("embeddings/page", "embeddings/live", "positives/v2l"):
        assert list(shown[name]) == [2, 4, 5]
    entries = shown["embeddings/video"][5].histo
    items = evaluate(finished, step=5, subset=7).metrics["retrieval"]["p2v"]["gallery"]
    assert entries.num == 16 * items
    assert entries.sum_squares == pytest.approx(items)  # each has length 1
    config = make_config()
    with closing(training_batches(config, run_tokenizer(config, finished), start_step=0)) as batches:
        batch = next(batches)
    pictures = {tag: images[1].image for tag, images in shown.items() if tag.startswith("batch/")}
    assert list(pictures) == [f"batch/product {number}: page, video, live" for number in batch["product_id"][:4]]
    for example, picture in enumerate(pictures.values()):
        sides = [batch[domain]["frames"][example, 0] for domain in ("page", "video", "live")]
        pixels = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
        np.testing.assert_array_equal(pixels, np.concatenate(sides, axis=1))


@pytest.mark.slow
def test_a_run_stopped_during_evaluations_repeats_them(finished, make_config, tmp_path, monkeypatch):
    """It is stopped at step 4 in the average's, at the last step in the model's, and in the one on all items."""
    look, looks, stops = Probe.__call__, [], [4, 7]
    embed, begin, begun = run.embed_split, Watchdog.reset, []

    def stop_in_the_middle(self, model, between):
        looks.append(model)
        if len(looks) in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return look(self, model, between)

    def stop_at_once(*args, **kwargs):
        monkeypatch.setattr(run, "embed_split", embed)
        with pytest.raises(ValueError, match="is training in"), locked_workdir(tmp_path):
            pass
        begun.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        return embed(*args, **kwargs)

    def note(self, what):
        begun.append(what)
        begin(self, what)

    monkeypatch.setattr(StopSignal, "watch", lambda self, pipe: None)  # it would end this process
    monkeypatch.setattr(Probe, "__call__", stop_in_the_middle)
    monkeypatch.setattr(run, "embed_split", stop_at_once)
    monkeypatch.setattr(Watchdog, "reset", note)
    averages = []
    for step in (4, 5):
        with pytest.raises(Stopped, match=f"stopped at step {step} of 5, which is saved"):
            train(make_config(), tmp_path)
        assert list(found_in(tmp_path)) == [2, 4][: step - 3]
        averages.append(stored(tmp_path, step)["average"])
        assert begun[-1] == f"the evaluation of step {step}"
    with pytest.raises(Stopped, match="stopped at step 5 of 5, which is saved"):
        train(make_config(), tmp_path)
    (begun_last,) = begun  # after the first batch
    assert begun_last.startswith("the evaluation of all of step ")
    assert not list((tmp_path / "eval").rglob("metrics.json"))
    train(make_config(), tmp_path)
    assert "the evaluation of all of the moving average of step 5" in begun
    assert len(looks) == 9
    assert_same_run(tmp_path, finished)
    before, after = averages
    now = stored(tmp_path, 5)
    kept = 5 / 14  # in the step from 4 to 5: still less than the decay
    for name, model in (("params", now["params"]["model"]), ("statistics", now["statistics"])):
        expected = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, before[name], model)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after[name], expected)


@pytest.mark.slow
def test_evaluations_skip_items_that_cannot_be_read(finished, make_config, tmp_path, monkeypatch, capsys):
    """The last evaluation is repeated, as after a kill."""
    shutil.copytree(finished, tmp_path / "run")
    lines = (finished / "evaluations.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "run/evaluations.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    read, videos = ItemRecords.__getitem__, []

    def rot(self, row):
        if self.domain == "video":
            videos.append(row)
            if row == videos[0]:
                raise InvalidItemError(f"{self.place(row)} is broken")
        return read(self, row)

    monkeypatch.setattr(ItemRecords, "__getitem__", rot)
    monkeypatch.setattr(loop, "evaluate_in_full", lambda *_: None)
    train(make_config(), tmp_path / "run")
    assert re.search(r"skipped: record \d+ of .*video.* is broken", capsys.readouterr().out)
    before, after = found_in(finished)[5], found_in(tmp_path / "run")[5]
    assert (before["bad_items"], after["bad_items"], after["average_bad_items"]) == (0, 1, 1)
    for name in ("p2l_r1", "average_l2p_r1"):
        assert after[name] == before[name]


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_equals_an_uninterrupted_one(
    finished, make_config, write_config, tmp_path, monkeypatch
):
    """With benchmarks/chaos.py, in other processes, two kills within a second."""
    # These only read the compilation cache: a kill could truncate new entries.
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1e9")
    words = [f"--config={write_config(make_config())}"]
    killed, alone = (chaos.Training(folder, words, steps=5, devices=8) for folder in (tmp_path / "run", finished))
    kills = [Kill("SIGKILL", "evaluation"), Kill("SIGTERM", "at once"), Kill("damage", "evaluation")]
    deaths = chaos.run_with_kills(killed, kills, random.Random(0))
    assert [death.kill for death in deaths] == kills
    assert len(list((tmp_path / "run/damaged").iterdir())) == 1
    assert chaos.differing_bytes(killed, alone) == 0


def test_the_best_step_comes_from_the_file(make_config, tmp_path):
    config = replace_fields(make_config(), {"train.best_by": "mean_r1"})
    lines = [{"step": 2, "mean_r1": 0.5}, {"step": 4, "mean_r1": 0.5}, {"step": 6, "mean_r1": 0.9}, {"step": 7}]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluations = Evaluations(config, tmp_path, step=4)
    assert [step for step in range(8) if evaluations.due(step)] == [5, 6]
    assert evaluations.best([2, 4, 5, 6]) == 4
    assert evaluations.best([2]) == 2
    assert evaluations.best([3]) is None
    evaluations.add(6, {"mean_r1": 0.50000001})
    assert evaluations.best([4, 6]) == 6
    config = replace_fields(config, {"train.evaluate_every": 0})
    assert not any(Evaluations(config, tmp_path, step=0).due(step) for step in range(8))


def test_a_run_with_fewer_steps_than_its_newest_checkpoint_evaluates_that_one(make_config, tmp_path, monkeypatch):
    evaluated = []

    def evaluate_nothing(workdir, *, step, average, **_):
        evaluated.append((step, average))
        return SimpleNamespace(metrics={"retrieval_mean": {"mean_r1": 0.5}, "empty": {"retrieval": {}}})

    monkeypatch.setattr("cope_jax.training.evaluations.evaluate", evaluate_nothing)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(5, TrainState(jnp.int32(5), {"model": jnp.ones(3)}, {}, ()), {})
    config = replace_fields(make_config(), {"train.steps": 3})
    evaluate_in_full(config, tmp_path, StopSignal(), Watchdog(0))
    assert evaluated == [(5, False), (5, True)]


def test_shares_of_the_same_items_are_an_error(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr("cope_jax.evaluation.embed_items.batch_share", lambda mesh: (0, 2))
    with pytest.raises(ValueError, match=r"config.mesh.tensor=1 spans processes, .*evaluate_every to 0"):
        train(make_config(), tmp_path)


def test_directions_without_a_common_product_are_named(make_config, monkeypatch, capsys):
    """Of one product with a video, but neither a page nor a live."""
    config = make_config()
    rows = {"page": np.array([], int), "video": np.array([0]), "live": np.array([], int)}
    monkeypatch.setattr("cope_jax.evaluation.probe.draw_products", lambda *_: [Product(1, rows)])
    Probe(LoadedRun(config, None, make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]), None, None))
    assert capsys.readouterr().out.splitlines() == [
        f"no R@1 of {a} and {b} during training: none of 1 products has both {a} and {b} items"
        for a, b in (("page", "video"), ("page", "live"), ("video", "live"))
    ]

"""Whole runs: equal on every mesh, equal after interruptions, and stopped cleanly."""

import json
import os
import resource
import shutil
import signal
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from configs import cope_rope
from cope_jax.data.groups import Groups
from cope_jax.data.records import open_records
from cope_jax.parallel.mesh import make_mesh, to_devices
from cope_jax.runs.checkpoints import Checkpoints
from cope_jax.runs.config import flatten
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import replace_fields, resolve_config
from cope_jax.runs.inputs import run_tokenizer, training_batches, training_classes
from cope_jax.training import loop
from cope_jax.training.dry_run import device_bytes
from cope_jax.training.loop import Profiler, train
from cope_jax.training.plan import change_parts, make_plan, restore_or_initialize
from cope_jax.training.progress import TrainingProgress
from cope_jax.training.reporting import MetricsLog
from cope_jax.training.signals import Stopped, StopSignal
from cope_jax.training.watchdog import Watchdog
from data_prep.common.files import lock_file

pytestmark = pytest.mark.usefixtures("shared_plans")


def stored(workdir, step):
    """The state of a checkpoint as NumPy arrays."""
    with ocp.StandardCheckpointer() as reader:
        return jax.tree.map(np.asarray, reader.restore(workdir.absolute() / f"checkpoints/{step}/state"))


def assert_equal_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close_to_largest(x, y):
    """Within 1e-4 of the array's largest entry; 1e-7 is rounding if all of it should be 0."""
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.abs(x).max() + 1e-7)


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def means(steps):
    """The means of metrics over some steps."""
    totals = jax.tree.map(lambda *values: sum(values), *steps)
    return {name: mean.compute() for name, mean in totals.items()}


def first_state(config, mesh, workdir, *, vocab_size):
    """The initial state on a mesh and the plan of the run."""
    plan = make_plan(config, mesh, vocab_size=vocab_size)
    with Checkpoints(workdir) as checkpoints:
        return restore_or_initialize(config, plan, checkpoints, vocab_size=vocab_size)[0], plan


@pytest.fixture(scope="module")
def quick_config(make_quick_config):
    """The config of a run of six steps with little to compile."""
    return make_quick_config(**{"train.steps": 6, "train.log_every": 2})


@pytest.fixture(scope="module")
def finished(quick_config, tmp_path_factory):
    """A work directory trained without interruption."""
    workdir = tmp_path_factory.mktemp("finished")
    train(quick_config, workdir)
    return workdir


def test_a_run_writes_a_complete_work_directory(finished, quick_config):
    assert {path.name for path in finished.iterdir()} == {
        ".lock",
        "config.json",
        "starts.jsonl",
        "tokenizer",
        "checkpoints",
        "metrics.jsonl",
        "speed.jsonl",
        "tensorboard",
    }
    with Checkpoints(finished) as checkpoints:
        assert checkpoints.manager.all_steps() == [4, 6]
    assert [step for step, _ in losses(finished)] == [2, 4, 6]


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(finished, quick_config, tmp_path, monkeypatch):
    report = TrainingProgress.update

    def stop_at_two(self, step, loss):
        report(self, step, loss)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingProgress, "update", stop_at_two)
    with pytest.raises(Stopped, match="stopped at step 3 of 6, which is saved"):  # inside a report window
        train(quick_config, tmp_path)
    monkeypatch.setattr(TrainingProgress, "update", report)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(quick_config, tmp_path)
    assert_equal_trees(stored(tmp_path, 6), stored(finished, 6))
    assert losses(tmp_path) == losses(finished)


@pytest.mark.slow
def test_a_run_with_hard_batches_resumes_with_the_groups_of_its_checkpoint(finished, quick_config, tmp_path):
    """Groups are made after steps 3 and 6, and step 4 is saved."""
    config = replace_fields(quick_config, {"data.hard_batches": 0.5, "data.hard_every": 3})
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/6")
    train(config, tmp_path / "resumed")
    assert_equal_trees(stored(tmp_path / "resumed", 6), stored(tmp_path / "whole", 6))
    assert losses(tmp_path / "whole")[0] == losses(finished)[0]  # before there are groups
    assert losses(tmp_path / "whole")[1] != losses(finished)[1]
    with Checkpoints(tmp_path / "whole") as checkpoints:
        order, later = (checkpoints.read_order(step).order for step in (4, 6))
    with Checkpoints(finished) as checkpoints:
        assert checkpoints.read_order(6) is None
    assert sorted(order.tolist()) == sorted(later.tolist()) == list(range(24))
    assert order.tolist() != later.tolist()
    tokenizer = run_tokenizer(config, tmp_path / "whole")
    mixed, plain = (
        next(training_batches(config, tokenizer, start_step=4, groups=groups))["product_id"]
        for groups in (Groups(order, 0.5), None)
    )
    products = open_records(config.data.data_dir, "train").products
    rows = {products[row].product_id: row for row in range(24)}
    kept, added = mixed[:4].tolist(), mixed[4:].tolist()
    assert kept == plain[:4].tolist()
    places = np.argsort(order)
    assert {places[rows[p]] // 8 for p in added} <= {places[rows[p]] // 8 for p in kept}
    assert len(set(mixed.tolist())) == 8


@pytest.mark.slow
def test_a_run_resumes_with_and_without_sharded_moments(finished, quick_config, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints/6")
    sharded_config = replace_fields(quick_config, {"train.shard_optimizer": True})
    train(sharded_config, run)  # from step 4, saved without
    expected, found = (optax.tree.get(stored(folder, 6)["opt_state"], "mu") for folder in (finished, run))
    jax.tree.map(assert_close_to_largest, expected, found)
    mesh, vocab_size = make_mesh(**asdict(quick_config.mesh)), len(run_tokenizer(quick_config, run))
    plain, sharded = (make_plan(c, mesh, vocab_size=vocab_size).state for c in (quick_config, sharded_config))
    assert device_bytes(plain.params) == device_bytes(sharded.params)
    assert 0.5 <= device_bytes(sharded.opt_state) / device_bytes(plain.opt_state) < 0.52  # on two devices
    with Checkpoints(run) as checkpoints:
        restored, _ = checkpoints.restore(6, plain)
    moments = optax.tree.get(restored.opt_state, "mu")
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(moments))
    assert_equal_trees(moments, found)


@pytest.mark.slow
def test_a_frozen_encoder_keeps_its_values_after_a_restart(quick_config, tmp_path):
    groups = (("^model/text/", 0.0), ("", 1.0))
    changes = {"optimizer.groups": groups, "train.steps": 3, "train.checkpoint_every": 1}
    quick_config = replace_fields(quick_config, changes)
    train(quick_config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/3")
    train(quick_config, tmp_path)
    first, last = (stored(tmp_path, step)["params"]["model"] for step in (2, 3))
    mesh = make_mesh(**asdict(quick_config.mesh))
    vocab_size = len(run_tokenizer(quick_config, tmp_path))
    fresh = first_state(quick_config, mesh, tmp_path / "fresh", vocab_size=vocab_size)[0].params["model"]
    jax.tree.map(np.testing.assert_array_equal, *map(jax.tree.leaves, (last["text"], fresh["text"])))
    for before, after in ((fresh, first), (first, last)):
        equal = jax.tree.map(np.array_equal, *(tree["vision"]["project"] for tree in (before, after)))
        assert not any(jax.tree.leaves(equal))


@pytest.mark.slow
def test_a_lost_checkpoint_is_trained_again(finished, quick_config, tmp_path, capsys, monkeypatch):
    """The log already has lines of these steps, as after a kill between two checkpoints; results are stored, too.

    The watchdog is notified of each phase, and a trace of the steps is written.
    """
    begin, begun = Watchdog.reset, []

    def note(self, what):
        begun.append(what)
        begin(self, what)

    monkeypatch.setattr(Watchdog, "reset", note)
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    for step in ("4", "6"):
        (tmp_path / "run/eval" / step).mkdir(parents=True)
    train(quick_config, tmp_path / "run", profile_steps=(6, 9))
    assert [path.name for path in (tmp_path / "run/eval").iterdir()] == ["4"]
    assert begun == [
        "the start",
        *("the batch of step 5", "the compiling of step 5", "the other processes at step 5"),
        *("the batch of step 6", "step 5", "the other processes at step 6", "the saving of step 6"),
    ]
    output = capsys.readouterr().out
    assert "resuming from step 4" in output
    assert "saved 4, " in output
    (trace,) = (tmp_path / "run/profile").rglob("*.xplane.pb")
    assert b"train_step" in trace.read_bytes()
    assert_equal_trees(stored(tmp_path / "run", 6), stored(finished, 6))
    assert losses(tmp_path / "run") == losses(finished)


@pytest.mark.slow
def test_an_invalid_checkpoint_costs_the_steps_since_the_previous_one(finished, quick_config, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/checkpoints/6/state/manifest.ocdbt").write_bytes(b"")
    train(quick_config, tmp_path / "run")
    assert "the checkpoint of step 6 is invalid" in capsys.readouterr().out
    assert_equal_trees(stored(tmp_path / "run", 6), stored(finished, 6))
    assert losses(tmp_path / "run") == losses(finished)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from an event loop of Orbax
def test_a_full_disk_costs_one_save_but_not_the_run(finished, quick_config, tmp_path, capsys, monkeypatch, full_disk):
    """The disk is full from step 1 to step 4, while the save of step 2 is due."""
    report, sync, syncs = TrainingProgress.update, MetricsLog.sync, []

    def fill_and_clear(self, step, loss):
        report(self, step, loss)
        if step in (1, 4):
            time.sleep(3 if step == 4 else 0)  # saves are rarely that close: the threads of the failed one must end
            full_disk(100 if step == 1 else resource.RLIM_INFINITY)

    def note(self):
        syncs.append(sync(self))

    monkeypatch.setattr(TrainingProgress, "update", fill_and_clear)
    monkeypatch.setattr(MetricsLog, "sync", note)
    train(quick_config, tmp_path)
    assert len(syncs) == 2
    errors = capsys.readouterr().err
    assert f"{tmp_path / 'metrics.jsonl'} cannot be written (File too large)" in errors
    assert "saving step 2 in" in errors
    assert "saving step 4 in" not in errors
    assert_equal_trees(stored(tmp_path, 6), stored(finished, 6))
    for name in ("metrics.jsonl", "speed.jsonl"):
        assert len((tmp_path / name).read_text().splitlines()) == len((finished / name).read_text().splitlines())
    assert losses(tmp_path) == losses(finished)


def test_only_one_run_can_use_a_work_directory(finished, quick_config, monkeypatch):
    """The watchdog also covers a lock that does not answer."""
    watched = []

    def lock_and_note_watchdog(*args):
        watched.extend(thread.name for thread in threading.enumerate() if thread.name == "watchdog")
        return lock_file(*args)

    monkeypatch.setattr(loop, "lock_file", lock_and_note_watchdog)
    message = rf"process {os.getpid()} on .* is training in {finished}; wait for it or stop it"
    with lock_file(finished / ".lock", "is training"), pytest.raises(ValueError, match=message):
        train(quick_config, finished)
    assert watched == ["watchdog"]


@pytest.mark.slow
def test_a_failed_last_save_is_an_error(finished, quick_config, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/6")

    def fail(self):
        raise OSError("no space left")

    monkeypatch.setattr(Checkpoints, "_seal", fail)
    with pytest.raises(OSError, match=r"could not be written .* it resumes from step 4"):
        train(quick_config, tmp_path / "run")


def test_a_step_that_is_not_finite_is_skipped(finished, quick_config, tmp_path):
    tokenizer = run_tokenizer(quick_config, finished)
    mesh = make_mesh(**asdict(quick_config.mesh))
    state, plan = first_state(quick_config, mesh, tmp_path, vocab_size=len(tokenizer))
    state.params["loss"]["sigmoid"]["bias"] *= np.nan
    before = jax.device_get(state)
    with closing(training_batches(quick_config, tokenizer, start_step=0)) as batches:
        state, metrics = plan.step(state, to_devices(next(batches), mesh))
    assert_equal_trees(jax.device_get(state), before.replace(step=np.int32(1)))
    assert float(metrics["skipped"].compute()) == 1
    assert np.isnan(metrics["loss"].compute())
    assert float(metrics["loss"].count) == 0


@pytest.mark.slow
@pytest.mark.parametrize("rate", [3e38, 1e25])
def test_parameters_that_overflow_end_the_run(finished, quick_config, tmp_path, rate):
    """Loss and gradients are still finite. Nothing is saved, and a lower rate resumes."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    fields = {"optimizer.rate": rate, "optimizer.weight_decay": 1e3, "train.checkpoint_every": 1}
    with pytest.raises(ValueError, match=r"the parameters of step 5 overflow, .*; nothing is saved. Lower "):
        train(replace_fields(quick_config, fields), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["4"]
    train(quick_config, tmp_path / "run")
    assert_equal_trees(stored(tmp_path / "run", 6), stored(finished, 6))


@pytest.fixture
def unsound(monkeypatch):
    """A context in which the parameters of resumed runs are not finite."""

    @contextmanager
    def context():
        def restore(*args, **kwargs):
            state, window = restore_or_initialize(*args, **kwargs)
            state.params["loss"]["sigmoid"]["bias"] *= np.nan
            return state, window

        with monkeypatch.context() as patch:
            patch.setattr(loop, "restore_or_initialize", restore)
            yield

    return context


@pytest.mark.slow
def test_too_many_skipped_steps_end_the_run_and_another_rate_resumes_it(
    finished, quick_config, tmp_path, capsys, unsound
):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    high = replace_fields(quick_config, {"optimizer.rate": 1e3, "train.max_skipped": 0, "train.checkpoint_every": 1})
    with unsound(), pytest.raises(ValueError, match=r"step 5 was skipped .*at most 0 in a row may be"):
        train(high, tmp_path / "run")
    assert "step 5 skipped: loss or gradients not finite; products" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["4"]
    train(replace_fields(quick_config, {"optimizer.clip_norm": 0.0}), tmp_path / "run")
    output = capsys.readouterr().out
    assert "changed since the last start: config.optimizer.rate: 1000.0 before, 0.001 now" in output
    assert "resuming from step 4" in output
    assert (tmp_path / "run/checkpoints/6").exists()


@pytest.mark.slow
def test_a_run_must_not_end_with_a_skipped_step(finished, quick_config, tmp_path, unsound):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    with unsound(), pytest.raises(ValueError, match=r"steps 5 to 6 were skipped .* last step of a run must not be"):
        train(quick_config, tmp_path / "run")
    assert not (tmp_path / "run/checkpoints/6").exists()
    train(quick_config, tmp_path / "run")
    assert_equal_trees(stored(tmp_path / "run", 6), stored(finished, 6))
    assert losses(tmp_path / "run") == losses(finished)


@pytest.mark.slow
def test_a_run_that_is_stopped_after_a_skipped_step_saves_nothing(
    finished, quick_config, tmp_path, monkeypatch, unsound
):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    monkeypatch.setattr(StopSignal, "agreed", lambda self, step: step == 5)
    match = "stopped at step 5 of 6, which was skipped; the last checkpoint is of step 4;"
    with unsound(), pytest.raises(Stopped, match=match):
        train(quick_config, tmp_path / "run")


@pytest.mark.slow
def test_the_last_sound_checkpoint_outlives_one_that_may_be_unsound(finished, quick_config, tmp_path):
    """Whether the parameters of a checkpoint are sound is known after the next step."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    train(replace_fields(quick_config, {"train.keep_checkpoints": 1}), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["4", "6"]


@pytest.mark.slow
@pytest.mark.parametrize("clipping", [(), (optax.MaskedState(optax.EmptyState()),)])
def test_a_run_of_an_earlier_version_with_other_clipping_resumes(finished, quick_config, tmp_path, clipping):
    """As earlier versions stored runs with clip_norm=0, and those with a regex `clipped`. The part has no values."""
    run = shutil.copytree(finished, tmp_path / "run")
    mesh = make_mesh(**asdict(quick_config.mesh))
    plan = make_plan(quick_config, mesh, vocab_size=len(run_tokenizer(quick_config, run)))
    with Checkpoints(run, keep=2) as checkpoints:
        state, window = checkpoints.restore(4, plan.state)
    shutil.rmtree(run / "checkpoints")
    with Checkpoints(run, keep=2) as checkpoints:
        checkpoints.save(4, change_parts(state, lambda parts: (*clipping, *parts[1:])), window)
    train(quick_config, run)
    assert_equal_trees(stored(run, 6), stored(finished, 6))


@pytest.mark.slow
def test_a_finished_run_can_be_extended(finished, quick_config, tmp_path, capsys):
    """It goes on with the schedule of the new number of steps, as a run that had that number all along."""
    shutil.copytree(finished, tmp_path / "run")
    longer = replace_fields(quick_config, {"train.steps": 8})
    train(longer, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "training on 2 × cpu" in printed
    assert "changed since the last start: config.train.steps: 6 before, 8 now" in printed
    assert [step for step, _ in losses(tmp_path / "run")] == [2, 4, 6, 8]
    assert load_config(tmp_path / "run").train.steps == 8
    tokenizer, mesh = run_tokenizer(longer, finished), make_mesh(**asdict(longer.mesh))
    state, plan = first_state(longer, mesh, finished, vocab_size=len(tokenizer))
    with closing(training_batches(longer, tokenizer, start_step=6)) as batches:
        for _ in range(2):
            state, _ = plan.step(state, to_devices(next(batches), mesh))
    assert_equal_trees(stored(tmp_path / "run", 8)["params"], jax.device_get(state.params))


def test_a_finished_run_is_not_changed(finished, quick_config, capsys):
    before = (finished / "metrics.jsonl").stat().st_mtime_ns
    train(quick_config, finished)
    assert "already has all 6 steps" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "changed"),
    [
        ((4, 1, 1), {"train.shard_optimizer": True}),
        (
            (2, 2, 2),
            {
                "model.vision.depth": 2,
                "model.fusion.kind": "transformer",
                "model.remat": "dots",
                "model.head_norm": "none",
                "losses.infonce.weight": 1.0,
                "losses.classifier.weight": 0.1,
            },
        ),
    ],
)
def test_all_meshes_train_equally(finished, tiny_config, tmp_path, sizes, changed):
    tiny_config = replace_fields(tiny_config, changed)
    tokenizer, class_ids = run_tokenizer(tiny_config, finished), training_classes(tiny_config)
    classes = 0 if class_ids is None else len(class_ids)
    tiny_config = replace_fields(tiny_config, {"losses.classifier.classes": classes})
    meshes = (
        make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]),
        make_mesh(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))),
    )
    results = []
    for number, mesh in enumerate(meshes):
        state, plan = first_state(tiny_config, mesh, tmp_path / str(number), vocab_size=len(tokenizer))
        curve = []
        with closing(training_batches(tiny_config, tokenizer, start_step=0, class_ids=class_ids)) as batches:
            for step in range(4):
                state, metrics = plan.step(state, to_devices(next(batches), mesh))
                curve.append(jax.device_get(metrics))
                if step == 2:
                    # Gradients rather than parameters: Adam makes full steps even if the gradient is 0 up to rounding
                    # (biases of attention keys or before a batch normalization), so that the last bits decide.
                    early = jax.device_get((optax.tree.get(state.opt_state, "mu"), state.statistics))
        results.append((*early, curve))
    (gradients, statistics, curve), (cut_gradients, cut_statistics, cut_curve) = results
    jax.tree.map(assert_close_to_largest, gradients, cut_gradients)
    # Columns vary by about 1; a mean that is only such a bias is as undecided as the bias.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), statistics, cut_statistics)
    np.testing.assert_allclose(*([step["loss"].compute() for step in c] for c in (cut_curve, curve)), rtol=1e-5)
    for name, value in means(curve[:3]).items():
        assert means(cut_curve[:3])[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_batch_must_be_divisible_among_devices(tiny_config, tmp_path):
    tiny_config = replace_fields(tiny_config, {"train.batch_size": 12, "mesh.data": 8})
    with pytest.raises(ValueError, match=r"config.train.batch_size is 12; expected a multiple of 8, .* such as 16"):
        train(tiny_config, tmp_path)


@pytest.mark.slow
def test_training_lowers_the_loss(tiny_config, tmp_path):
    changes = {"train.steps": 40, "optimizer.rate": 1e-2, "losses.sigmoid.bias": -2.0, "train.log_every": 10}
    train(replace_fields(tiny_config, changes), tmp_path)
    values = [loss for _, loss in losses(tmp_path)]
    assert values[-1] < 0.8 * values[0]


@pytest.fixture
def small_authors(tiny_config):
    """The authors' recipe at the size of the other tests, from random weights."""
    fields = flatten(tiny_config)
    sizes = {key: value for key, value in fields.items() if key.startswith(("data.", "train.", "eval."))}
    shape = ("width", "depth", "heads", "patch_size", "integration_heads", "output_width")
    sizes |= {key: value for key, value in fields.items() if key.startswith("model.") and key.endswith(shape)}
    weights = {"data.tokenizer": "", "model.vision.init_from": "", "model.text.init_from": ""}
    # Group factors of 0.002 are for published weights, and the warm-up takes thousands of steps.
    rates = {"optimizer.groups": (("", 1.0),), "optimizer.warmup_steps": 2}
    changes = sizes | weights | rates | {"train.steps": 30, "train.log_every": 10}
    return resolve_config(cope_rope.get_config(), changes)


@pytest.mark.slow
def test_the_authors_recipe_trains(small_authors, tmp_path):
    train(small_authors, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = lines[0], lines[-1]
    assert last["infonce/loss"] < first["infonce/loss"]
    assert last["classifier/loss"] < 0.9 * first["classifier/loss"]
    expected = last["infonce/loss"] / 16 + last["classifier/loss"]  # as effective in the authors' release
    assert last["loss"] == pytest.approx(expected, rel=1e-5)
    assert {"infonce/loss/page_text_video", "infonce/loss/page_vision_live", "classifier/accuracy/live"} <= last.keys()
    assert not any(name.startswith("sigmoid/") for name in last)
    assert load_config(tmp_path).losses.classifier.classes == 24
    assert stored(tmp_path, 30)["params"]["loss"]["classifier"]["table"].shape == (3072, 128)


def test_a_wrong_number_of_classes_is_an_error(small_authors, tmp_path):
    small_authors = replace_fields(small_authors, {"losses.classifier.classes": 25})
    with pytest.raises(ValueError, match=r"classifier.classes is 25; expected 24, the number of products"):
        train(small_authors, tmp_path)


@pytest.mark.slow
def test_random_draws_depend_on_the_step(finished, quick_config, tmp_path):
    """With one batch and one state, dropout depends on the number of the step only."""
    tokenizer = run_tokenizer(quick_config, finished)
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    state, plan = first_state(quick_config, mesh, tmp_path, vocab_size=len(tokenizer))
    with closing(training_batches(quick_config, tokenizer, start_step=0)) as batches:
        batch = to_devices(next(batches), mesh)

    def loss_at(step):
        at = jax.tree.map(jnp.copy, state).replace(step=jnp.asarray(step, jnp.int32))
        return means([jax.device_get(plan.step(at, batch)[1])])["loss"]

    assert loss_at(0) == loss_at(0) != loss_at(1)


def test_a_resumed_run_traces_the_remaining_steps(tmp_path, monkeypatch, capsys):
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    profiler = Profiler(tmp_path, (4, 6))
    for step in (5, 6, 7):
        profiler.before_step(step)
        events.append(step)
        profiler.after_step(step, None)
    assert events == ["start", 5, 6, "stop", 7]
    assert f"trace of steps 4 to 6 in {tmp_path}: tensorboard --logdir={tmp_path}" in capsys.readouterr().out

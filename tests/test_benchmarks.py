"""Tests of the benchmarks: that each fits the code and its flags, and the parts that they compute with."""

import importlib
import io
import random
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from absl import app, flags
from PIL import Image

from benchmarks import all as all_benchmarks
from benchmarks import chaos, hardware, input_pipeline, killed_commands, loss, measuring, step, torch_pipeline
from benchmarks.torch_cope import TorchCope, used_parameters
from cope_jax.parallel.targets import GIB
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.model import split_model

MODULES = {path.stem for path in Path(all_benchmarks.__file__).parent.glob("*.py")}
HELPERS = {"catalog_writer", "measuring", "tables", "torch_cope", "torch_pipeline", "torch_references"}
COMMANDS = sorted(MODULES - HELPERS)
MICRO = {
    "data.image_size": 32,
    "data.text_length": 6,
    "data.frames.video": 2,
    "data.frames.live": 2,
    "eval.frames.video": 2,
    "eval.frames.live": 2,
    "model.embedding": 5,
    "model.vision.width": 8,
    "model.vision.depth": 2,
    "model.vision.heads": 2,
    "model.vision.output_width": 6,
    "model.vision.integration_heads": 2,
    "model.text.width": 4,
    "model.text.depth": 1,
    "model.text.heads": 2,
}


@pytest.fixture
def own_flags():
    """Removes the flags that a benchmark defines: others define flags of the same names."""
    before = set(flags.FLAGS)
    yield flags.FLAGS
    flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)


@pytest.fixture(autouse=True)
def one_thread():
    """Uses one thread of torch: with models this small, several would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def micro_config():
    return replace_fields(step.make_config("tiny", 3), MICRO)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_accepts_its_quick_flags(name, own_flags):
    module = importlib.import_module(f"benchmarks.{name}")
    module.define_flags()
    if name in all_benchmarks.BENCHMARKS:
        own_flags([name, *all_benchmarks.BENCHMARKS[name].quick])
    assert callable(module.main)


def test_the_ways_to_compute_the_loss_give_the_same_value(own_flags):
    loss.define_flags()
    own_flags(["loss", "--chunk=8"])
    row = loss.measure(jax.device_count(), 1)  # compares the values
    assert row["devices"] == 8
    assert row["ring_bytes"] > 0
    assert row["dense_seconds"] > 0


def test_all_runs_every_benchmark_except_those_that_need_runs_compilers_or_devices():
    assert set(all_benchmarks.BENCHMARKS) == set(COMMANDS) - {
        "all",
        "ablation",
        "hardware",
        "finetune_plans",
        "device",
        "recording",
        "embedder",
        "serve",
        "fuzz",
        "killed_commands",
    }


def test_the_largest_batch_is_read_off_the_line_through_two_plans():
    line = hardware.Line(fixed=2 * GIB, per_product=GIB / 2)
    assert line.largest(59.3 * GIB) == 112  # 57.3 GiB for products of half a GiB, in eights
    assert line.largest(1 * GIB) == 0
    assert hardware.Line.through({"8": 6 * GIB, "16": 10 * GIB}) == line
    large = hardware.Line(20 * GIB, GIB)
    modes = {"all parameters": line, "frozen encoders": large}
    rows = hardware.markdown({"GPU": modes, "v5e": {}, "v6e": {}}).splitlines()
    assert rows[2] == "| GPU 24 GB (17.8 GiB usable) | 24 (14.0 GiB) | not planned | does not fit |"
    assert rows[6] == "| TPU v5e (15.8 GiB usable) | not planned | not planned | not planned |"
    assert rows[8] == "| GiB on a GPU | 2.00 + 0.5000 · products | not planned | 20.00 + 1.0000 · products |"


def test_a_failing_benchmark_is_reported_and_does_not_stop_the_others(monkeypatch, capsys, own_flags):
    def run(command, **_):
        fails = command[2] == "benchmarks.loss"
        return SimpleNamespace(returncode=int(fails), stdout='noise\n{"ratio": 2.5}\n', stderr="why\nboom")

    all_benchmarks.define_flags()
    own_flags(["all", "--quick", "--only=loss,embed"])
    monkeypatch.setattr(all_benchmarks.subprocess, "run", run)
    with pytest.raises(SystemExit) as exit:
        all_benchmarks.main([])
    assert exit.value.code == 1
    table = capsys.readouterr().out
    assert "FAILED  boom" in table
    assert "ratio 2.5" in table
    own_flags(["all", "--only=loss,lost"])
    with pytest.raises(app.UsageError, match="lost"):
        all_benchmarks.main([])


@pytest.mark.parametrize(
    ("moment", "processes", "fails"), [("at once", 2, False), ("at once", 1, True), ("steps", 2, True)]
)
def test_processes_may_fail_only_if_another_one_is_killed_before_it_joins(
    tmp_path, monkeypatch, moment, processes, fails
):
    """Uses fake training processes: the first ones give up, the second ones end at once."""
    start, scripts = subprocess.Popen, ["trap 'exit 1' TERM; echo 'step 1/5'; sleep 0.5; exit 1"] * processes
    monkeypatch.setattr(
        chaos.subprocess, "Popen", lambda *_, **kwargs: start(["sh", "-c", scripts.pop() if scripts else ""], **kwargs)
    )
    for name in chaos.MOMENTS:
        monkeypatch.setitem(chaos.MOMENTS, name, 0.4)  # the seed makes it 0.3 s: after the trap is set, before the end
    training, kills = chaos.Training(tmp_path / "run", [], steps=5), [chaos.Kill("SIGTERM", moment)]
    outcome = pytest.raises(RuntimeError, match=r"ended with \{1\}") if fails else nullcontext()
    with outcome:
        deaths = chaos.run_with_kills(training, kills, random.Random(0), [processes])
        assert deaths == [chaos.Death(kills[0], 0, 0)]


def test_chaos_finds_differing_bytes_and_losses_and_kills_that_lost_too_many_steps():
    def died(kind, lost):
        return chaos.Death(chaos.Kill(kind, "saving"), 20, lost)

    assert not chaos.find_problems([died("SIGKILL", 10), died("damage", 15)], 0, 1e-5)
    lost, differing, losses = chaos.find_problems([died("SIGKILL", 11), died("SIGTERM", 3)], 7, 0.05)
    assert lost == "SIGKILL saving at step 20 lost 11 steps, more than 10"
    assert differing == "7 bytes differ from the uninterrupted run"
    assert losses == "losses have a relative difference of 0.05"


def test_chaos_ends_with_an_error_if_bytes_differ(monkeypatch, own_flags):
    """Uses fake runs."""
    monkeypatch.setattr(chaos.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(chaos, "make_data", lambda folder: folder)
    monkeypatch.setattr(chaos, "run_to_the_end", lambda training: 1.0)
    monkeypatch.setattr(chaos, "run_with_kills", lambda run, kills, *_: [chaos.Death(kill, 3, 0) for kill in kills])
    monkeypatch.setattr(chaos, "largest_loss_difference", lambda *_: 0.0)
    chaos.define_flags()
    own_flags(["chaos", "--kills=2"])
    monkeypatch.setattr(chaos, "differing_bytes", lambda *_: 0)
    chaos.main(["chaos"])
    monkeypatch.setattr(chaos, "differing_bytes", lambda *_: 7)
    with pytest.raises(SystemExit, match="7 bytes differ"):
        chaos.main(["chaos"])


def test_the_torch_pipeline_crops_resizes_and_normalizes():
    image = Image.fromarray(np.full((30, 40, 3), (124, 116, 104), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    random.seed(0)
    frames = torch_pipeline.augment([buffer.getvalue()] * 2, 8)
    np.testing.assert_array_equal(np.stack(frames), np.broadcast_to([124, 116, 104], (2, 8, 8, 3)))
    tensors = torch_pipeline.normalize(frames)
    assert tensors.shape == (2, 3, 8, 8)
    wanted = (np.array([124, 116, 104]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(tensors[1, :, 3, 4], wanted, rtol=1e-4, atol=1e-6)


@pytest.fixture
def torch_batch(micro_config):
    batch = jax.tree.map(torch.from_numpy, step.make_batch(micro_config))
    for domain in ("page", "video", "live"):
        batch[domain]["text"] = batch[domain]["text"].long()
    return batch


def test_the_torch_model_has_as_many_parameters_that_its_loss_depends_on(micro_config, torch_batch):
    _, initialize = split_model(micro_config, vocab_size=step.VOCABULARY)
    ours = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(initialize).params)) + 2  # with t and β of the loss
    model = TorchCope(micro_config, vocab_size=step.VOCABULARY)
    model(torch_batch).backward()
    assert used_parameters(model) == ours


def test_the_loss_of_the_torch_model_is_the_sum_over_pairs(micro_config, torch_batch):
    """With equal embeddings, every logit is t + β = 0, and each of 3 · 3 · 3 terms is log 2, divided by 3."""
    model = TorchCope(micro_config, vocab_size=step.VOCABULARY).eval()
    for head in model.heads.values():
        torch.nn.init.zeros_(head.merge.weight)
        torch.nn.init.ones_(head.merge.bias)
    assert model(torch_batch).item() == pytest.approx(9 * np.log(2), rel=1e-5)


def test_batches_are_random_items_of_different_products(micro_config):
    batch = step.make_batch(micro_config)
    assert batch["video"]["frames"].shape == (3, 2, 32, 32, 3)
    assert batch["product_id"].tolist() == [0, 1, 2]
    assert (batch["live"]["products"][:, 0] == [0, 1, 2]).all()
    lengths = (batch["page"]["text"] != 0).sum(-1)
    assert lengths.min() >= 2
    assert (np.diff((batch["page"]["text"] != 0).astype(int)) <= 0).all()  # padding only at the end


def test_helpers_for_rates_and_memory():
    assert measuring.summarize_ratio("ratio", [2, 3, 8], [2, 2, 2]) == {"ratio": 1.5, "ratio_spread": [1.0, 4.0]}
    assert step.best_rate(lambda: None, 100) > 1e9
    assert step.is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"))
    assert not step.is_out_of_memory(RuntimeError("shapes differ"))
    assert 1e7 < input_pipeline.process_memory() < 1e11


@pytest.mark.parametrize(
    ("script", "differing", "leaves"),
    [
        ("touch $out.part; sleep 0.2; echo all > $out/a; rm $out.part", [], False),
        ("echo part >> $out/a; sleep 0.2", ["a"], False),
        ("touch $out.$$; sleep 0.2; echo all > $out/a; rm $out.$$", [], True),
    ],
)
def test_differing_bytes_and_leftovers_of_killed_commands_are_found(tmp_path, monkeypatch, script, differing, leaves):
    start = subprocess.Popen
    monkeypatch.setattr(
        killed_commands.subprocess,
        "Popen",
        lambda words, **own: start(["sh", "-c", f"out={words[-1]}; mkdir -p $out; {script}"], **own),
    )
    command = killed_commands.Command("copy", ["{out}"], tmp_path / "copy")
    result = killed_commands.kill_and_compare(command, 3, random.Random(0))
    assert result["differing"] == differing
    assert bool(result["left"]) == leaves
    assert (result["files"], result["varying"], result["orphans"]) == (1, [], 0)

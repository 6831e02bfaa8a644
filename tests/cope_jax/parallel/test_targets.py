"""Targets of compilation, and which devices compute cuDNN's attention."""

from types import SimpleNamespace

import jax
import pytest

from cope_jax.parallel import targets
from cope_jax.parallel.targets import GIB, Target, cudnn_problem
from cope_jax.runs import model
from cope_jax.runs.config_validation import replace_fields


@pytest.mark.parametrize(
    ("text", "kind", "shape", "size"),
    [
        ("h100:1", "h100", (1,), 1),
        ("h100:64", "h100", (64,), 64),
        ("v5e:2x4", "v5e", (2, 4), 8),
        ("v6e:16x16", "v6e", (16, 16), 256),
        ("cpu:3", "cpu", (3,), 3),
    ],
)
def test_a_target_is_a_kind_and_an_arrangement(text, kind, shape, size):
    target = Target.parse(text)
    assert (target.kind, target.shape, target.size, str(target)) == (kind, shape, size, text)


@pytest.mark.parametrize("text", ["", "h100", "h100:0", "h100:2x4", "v5e:8", "v5e:0x4", "cpu:", "tpu:2x4", "v5e:2x2x2"])
def test_another_form_is_an_error_that_shows_the_forms(text):
    with pytest.raises(ValueError, match=r"invalid target .*; expected h100:N, cpu:N, v5e:NxM or v6e:NxM"):
        Target.parse(text)


def test_a_slice_that_does_not_exist_is_an_error(monkeypatch):
    def describe(**_):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: 3x3 is not divisible by 2x2x1")

    monkeypatch.setattr(targets.topologies, "get_topology_desc", describe)
    monkeypatch.setattr(targets.os, "environ", {})
    with pytest.raises(ValueError, match="invalid target v5e:3x3: INVALID_ARGUMENT: 3x3 is not divisible by 2x2x1"):
        Target.parse("v5e:3x3").devices()


def test_a_program_fits_in_what_jax_allocates_by_default():
    assert [Target.parse("h100:8").fits(size * GIB) for size in (59, 60)] == [True, False]  # 75% of 79.1 GiB
    assert [Target.parse("v5e:2x4").fits(size * GIB) for size in (15.7, 15.8)] == [True, False]
    assert Target.parse("cpu:1").fits(1e15) is None


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(targets, "find_spec", lambda name: None if name == "libtpu" else object())
    assert Target.parse("v5e:2x4").missing_package == "libtpu"
    assert Target.parse("h100:1").missing_package is None
    assert Target.parse("cpu:1").missing_package is None


def device(platform, kind, *, version="", capability="9.0"):
    client = SimpleNamespace(platform_version=version)
    return SimpleNamespace(platform=platform, device_kind=kind, client=client, compute_capability=capability)


H100 = device("gpu", "NVIDIA H100 80GB HBM3", version="PJRT C API cuda 13000")
DEVICES = {
    "TPU v5 lite is not an NVIDIA GPU": device("tpu", "TPU v5 lite"),
    "AMD MI300X is not an NVIDIA GPU": device("gpu", "AMD MI300X", version="PJRT C API rocm 60300", capability="9.4"),
    "Tesla T4 has compute capability 7.5; expected 8.0 or newer": device("gpu", "Tesla T4", capability="7.5"),
}


def test_new_nvidia_gpus_compute_cudnn_attention():
    assert cudnn_problem([H100, H100]) is None


@pytest.mark.parametrize("problem", DEVICES)
def test_other_devices_do_not(problem):
    assert cudnn_problem([H100, DEVICES[problem]]) == problem


def test_a_gpu_without_cudnn_does_not(monkeypatch):
    def check():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(targets.fused_attention_stablehlo, "check_cudnn_version", check)
    assert cudnn_problem([H100]) is None  # a description; the library of its machine is unknown
    monkeypatch.setattr(jax, "local_devices", lambda: [H100])
    assert cudnn_problem([H100]) == "cuDNN is not detected."


@pytest.mark.parametrize(("problem", "said"), [(problem, "TPU" not in problem) for problem in DEVICES])
def test_automatic_attention_falls_back_and_says_so_once(problem, said, tiny_config, capsys):
    config = replace_fields(tiny_config, {"model.dtype": "bfloat16"})
    mesh = SimpleNamespace(devices=SimpleNamespace(flat=[DEVICES[problem]]), shape={"fsdp": 1})
    model._report_once.cache_clear()
    graphdefs = [model.split_model(config, vocab_size=10, mesh=mesh)[0] for _ in range(2)]
    assert "attention='xla'" in str(graphdefs[0])
    assert capsys.readouterr().out.count(f"without cuDNN, which may be slower: {problem}\n") == said
    mesh.devices.flat = [H100]
    assert "attention='auto'" in str(model.split_model(config, vocab_size=10, mesh=mesh)[0])

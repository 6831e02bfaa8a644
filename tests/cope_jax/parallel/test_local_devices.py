"""Whether JAX computes on the CPU, from environment, plugins and device files."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from cope_jax.parallel import local_devices


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that gives this machine device files and plugins."""

    def set_up(*, files=(), plugins=(), **environment):
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        monkeypatch.delenv("TPU_NAME", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(local_devices, "Path", lambda folder: tmp_path if folder == "/dev" else Path(folder))
        found = [EntryPoint(plugin, "module", "jax_plugins") for plugin in plugins]
        monkeypatch.setattr(local_devices, "entry_points", lambda group: found)

    return set_up


def test_plugins_without_their_devices_change_nothing(machine):
    machine(plugins=("xla_cuda13",), files=("null", "vfio/vfio"))
    assert local_devices.computes_on_cpu()


@pytest.mark.parametrize("file", ["nvidiactl", "kfd", "accel3", "vfio/0", "dxg"])
def test_a_device_file_means_another_device(machine, file):
    machine(files=(file,))
    assert not local_devices.computes_on_cpu()


def test_unknown_plugins_may_find_devices(machine):
    machine(plugins=("metal",))
    assert not local_devices.computes_on_cpu()


def test_the_environment_decides(machine):
    machine(TPU_NAME="node")
    assert not local_devices.computes_on_cpu()
    machine(files=("nvidia0",), JAX_PLATFORMS="cpu")
    assert local_devices.computes_on_cpu()
    machine(JAX_PLATFORMS="cuda,cpu")
    assert not local_devices.computes_on_cpu()

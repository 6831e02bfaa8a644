"""Devices to compile for without having them.

XLA's compilers for GPUs and TPUs run on any machine and return the programs and memory plans of the real devices:
`pip install -r requirements-accelerators.txt`.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import jax

# Private, but there is neither a public check of cuDNN nor a public switch of that check.
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies

GIB = 2**30
H100_DESCRIPTION = Path(__file__).parent / "h100.txtpb"  # what XLA's compiler has to know of the device


@dataclass(frozen=True)
class Hardware:
    """Published properties of one device."""

    memory: float  # bytes that programs can use
    flops: float  # peak bfloat16 operations per second, without sparsity
    bandwidth: float  # bytes per second between the device and its memory


# The memory of TPUs is what XLA reports as available; that of GPUs is before JAX's preallocation.
HARDWARE = {
    "h100": Hardware(79.1 * GIB, 989e12, 3.35e12),  # SXM
    "v5e": Hardware(15.75 * GIB, 197e12, 0.82e12),
    "v6e": Hardware(31.25 * GIB, 918e12, 1.64e12),
}
# By default, JAX gives programs this share of a GPU's memory (docs.jax.dev, "GPU memory allocation").
GPU_PREALLOCATION = 0.75
_TPU_PLATFORMS = {"v5e": "v5litepod", "v6e": "v6e"}


@dataclass(frozen=True)
class Target:
    """Devices to compile for: `h100:8`, `v5e:2x4`, `v6e:2x4` or `cpu:8`."""

    kind: str  # a key of `HARDWARE`, or "cpu"
    shape: tuple[int, ...]  # arrangement of the devices

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Parses a target.

        Raises:
            ValueError: It has another form.
        """
        match = re.fullmatch(r"(h100|v5e|v6e|cpu):(\d+(?:x\d+)*)", text)
        shape = tuple(map(int, match[2].split("x"))) if match else ()
        is_tpu = match is not None and match[1] in _TPU_PLATFORMS
        if match is None or min(shape) < 1 or len(shape) != (2 if is_tpu else 1):
            raise ValueError(f"invalid target {text!r}; expected h100:N, cpu:N, v5e:NxM or v6e:NxM, such as v5e:2x4")
        return cls(match[1], shape)

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def size(self) -> int:
        """Number of devices."""
        return prod(self.shape)

    @property
    def hardware(self) -> Hardware | None:
        """Properties of a device, None for CPUs."""
        return HARDWARE.get(self.kind)

    def fits(self, size: float) -> bool | None:
        """Returns whether a device has this many bytes for a program by default; None for CPUs."""
        return None if self.usable_memory is None else size <= self.usable_memory

    @property
    def usable_memory(self) -> float | None:
        """Bytes that programs get on a device by default; None for CPUs."""
        if self.hardware is None:
            return None
        return self.hardware.memory * (GPU_PREALLOCATION if self.kind == "h100" else 1)

    @property
    def missing_package(self) -> str | None:
        """The package that compiles for this target if it is not installed."""
        package = {"cpu": "jax", "h100": "jax_plugins.xla_cuda13"}.get(self.kind, "libtpu")
        try:
            found = find_spec(package) is not None
        except ModuleNotFoundError:  # the parent package
            found = False
        return None if found else package

    def devices(self) -> Sequence[Any]:
        """Returns the devices, which can be compiled for but not computed on; those of a CPU are real.

        Raises:
            ValueError: There is no slice of TPUs of this shape.
        """
        if self.kind == "cpu":
            return jax.devices("cpu")[: self.size]
        if self.kind == "h100":
            # Hosts of 8 devices: hosts, then processes per host, then devices per process.
            hosts, local = (self.size // 8, 8) if self.size % 8 == 0 else (1, self.size)
            return topologies.get_topology_desc(
                topology_name="",
                platform="cuda",
                target_config=H100_DESCRIPTION.read_text(),
                topology=f"{hosts}x1x{local}",
            ).devices
        # libtpu looks for a TPU and its neighbors unless told that there are none.
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # other processes may compile, too
        os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
        os.environ["TPU_ACCELERATOR_TYPE"] = f"{_TPU_PLATFORMS[self.kind]}-{self.size}"
        try:
            return topologies.get_topology_desc(topology_name=str(self), platform="tpu").devices
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"invalid target {self}: {error}") from error


def cudnn_problem(devices: Iterable[Any]) -> str | None:
    """Returns why these devices, present or described, cannot compute cuDNN's attention; None if they can."""
    for device in devices:
        if device.platform not in ("gpu", "cuda") or "rocm" in device.client.platform_version.lower():
            return f"{device.device_kind} is not an NVIDIA GPU"
        if float(device.compute_capability) < 8.0:
            return f"{device.device_kind} has compute capability {device.compute_capability}; expected 8.0 or newer"
        if any(device is present for present in jax.local_devices()):
            try:
                fused_attention_stablehlo.check_cudnn_version()
            except RuntimeError as error:
                return str(error)
    return None


@contextlib.contextmanager
def without_cudnn_checks() -> Iterator[None]:
    """Lets cuDNN attention be traced on a machine without a GPU, where JAX finds no cuDNN to ask for its version."""
    with mock.patch.multiple(
        fused_attention_stablehlo,
        check_cudnn_version=lambda: 91300,
        check_compute_capability=lambda capability: True,
        is_cuda_compute_capability_equal=lambda capability: capability == "9.0",
    ):
        yield

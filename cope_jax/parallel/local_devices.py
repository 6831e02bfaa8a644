"""Whether this machine has a GPU or TPU, from its device files; imports no JAX, which starts them."""

import os
from importlib.metadata import entry_points
from pathlib import Path

DEVICE_FILES = ("nvidia0", "nvidiactl", "dxg", "kfd", "accel*", "vfio/[0-9]*")  # NVIDIA, containers, WSL, AMD, TPUs
NEED_DEVICE_FILES = ("cuda", "rocm")  # in names of JAX's plugins; libtpu is none


def computes_on_cpu() -> bool:
    """Returns whether JAX computes on CPUs here: JAX_PLATFORMS says so, or there is no other device.

    Plugins may be installed without their devices, to compile for them.
    """
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    plugins = [plugin.name for plugin in entry_points(group="jax_plugins")]
    return all(any(kind in name for kind in NEED_DEVICE_FILES) for name in plugins) and not (
        "TPU_NAME" in os.environ or any(any(Path("/dev").glob(pattern)) for pattern in DEVICE_FILES)
    )

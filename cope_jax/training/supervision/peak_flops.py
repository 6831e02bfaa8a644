"""What devices can compute at most, for the share of it that training uses (MFU)."""

import jax

# Dense bfloat16 matrix operations a second of one device by JAX's name for it, from the makers' data sheets.
PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_of_devices() -> float:
    """Operations a second of all devices together; 0 where one is not known."""
    peaks = [PEAKS.get(device.device_kind, 0.0) for device in jax.devices()]
    return sum(peaks) if all(peaks) else 0.0

"""Metrics of training steps as values that can be merged."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Mean:
    """A mean as a sum and a count, both f32[]."""

    total: jax.Array | np.ndarray | np.floating
    count: jax.Array | np.ndarray | np.floating

    @classmethod
    def of(cls, value: jax.Array) -> "Mean":
        """Returns the mean of one value."""
        return cls(total=value, count=np.float32(1))

    def merge(self, other: "Mean") -> "Mean":
        """Returns the mean over both."""
        return Mean(self.total + other.total, self.count + other.count)

    def where(self, kept: jax.Array) -> "Mean":
        """Returns the same mean if `kept` (bool[]), else a mean over nothing."""
        return Mean(jnp.where(kept, self.total, 0), jnp.where(kept, self.count, 0))

    def compute(self) -> float:
        """Returns the mean; NaN over nothing."""
        return float(self.total) / float(self.count) if float(self.count) else float("nan")


def merge(window: Mapping[str, Mean], metrics: Mapping[str, Mean]) -> dict[str, Mean]:
    """Adds the metrics of a step to those of a report window, which may be empty."""
    return {name: window[name].merge(mean) if window else mean for name, mean in metrics.items()}

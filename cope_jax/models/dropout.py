"""Dropout whose draws belong to examples, on any number of devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

Rate = float | Float[Array, ""]  # a probability in [0, 1); an array if it differs between scanned layers


class DropoutRngs:
    """Random keys for dropout, one per example of a batch.

    What is drawn for an example depends neither on other examples nor on how devices and microbatches share the batch.
    """

    def __init__(self, keys_B: Key[Array, " B"]):
        self.keys_B, self._calls = keys_B, 0

    def __call__(self) -> Key[Array, " B"]:
        """Returns keys that no other call returns."""
        self._calls += 1
        return self._fold_in(self._calls)

    def for_layer(self, index: int | Int32[Array, ""]) -> "DropoutRngs":
        """Returns the keys of one of several layers, which share `self`."""
        return DropoutRngs(self._fold_in(index))

    def _fold_in(self, number: int | Int32[Array, ""]) -> Key[Array, " B"]:
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(self.keys_B, number)


def dropout(
    x: Float[Array, "*shape"], rate: Rate, rngs: DropoutRngs | None, *, per_row: bool = False
) -> Float[Array, "*shape"]:
    """Zeroes entries with probability `rate` and rescales the others.

    Args:
        x: Activations; each example has the same number of consecutive rows of the leading axis.
        rate: Probability.
        rngs: Keys of the examples; None for evaluation, which returns `x`.
        per_row: Draw one value per row of the leading axis instead of one per entry. In residual branches, this is
            stochastic depth (arXiv 1603.09382).
    """
    if rngs is None or (isinstance(rate, float) and rate == 0.0):
        return x
    keys_B, (rows, *rest) = rngs(), x.shape
    assert rows % len(keys_B) == 0
    shape = (rows // len(keys_B), *(1 if per_row else n for n in rest))
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape))(keys_B).reshape(rows, *shape[1:])
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), 0.0)

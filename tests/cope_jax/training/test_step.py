"""Parts of the training step. Whole steps are in test_loop.py."""

import numpy as np

from cope_jax.runs.checkpoints import ModelState
from cope_jax.training.step import update_average


def test_the_moving_average_matches_a_loop_in_float64():
    """Values that do not change stay the same to the last bit."""
    rng, expected = np.random.default_rng(0), None
    still = np.float32(rng.normal(size=3))
    for step in range(60):
        model = ModelState({"a": np.float32(rng.normal(size=(2, 3))), "still": still}, {"mean": np.float32(step)})
        if expected is None:
            average, expected = model, (np.float64(model.params["a"]), 0.0)
            continue
        average = update_average(average, model, step=np.int32(step), decay=0.8)
        kept = min(0.8, (1 + step) / (10 + step))
        new = (np.float64(model.params["a"]), float(step))
        expected = tuple(kept * old + (1 - kept) * value for old, value in zip(expected, new, strict=True))
    np.testing.assert_allclose(average.params["a"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(average.statistics["mean"], expected[1], rtol=1e-5)
    np.testing.assert_array_equal(average.params["still"], still)

"""AdamW against its formula, with decay, factors and clipping where they belong."""

import jax.numpy as jnp
import numpy as np
import pytest

from cope_jax.training.optimizer import make_optimizer, rate_schedule

PARAMS = {
    "a": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full((3,), 2.0)},
    "b": {"kernel": jnp.full((4,), -1.0)},
}
SETTINGS = {
    "rate": 0.1,
    "rate_factors": (),
    "warmup_steps": 2,
    "steps": 10,
    "b1": 0.9,
    "b2": 0.99,
    "weight_decay": 0.5,
    "clip_norm": 0.0,
}


def updates(gradients, **changed):
    """The second update: the first has rate 0."""
    optimizer = make_optimizer(PARAMS, **(SETTINGS | changed))
    state = optimizer.init(PARAMS)
    _, state = optimizer.update(gradients, state, PARAMS)
    return optimizer.update(gradients, state, PARAMS)[0]


def gradients():
    return {
        "a": {"kernel": jnp.full((2, 3), 3.0), "bias": jnp.full((3,), -4.0)},
        "b": {"kernel": jnp.full((4,), 0.5)},
    }


def test_the_rate_rises_linearly_and_falls_by_a_cosine():
    schedule = rate_schedule(rate=0.1, warmup_steps=4, steps=12)
    expected = [0.0, 0.05, 0.1, 0.1 * (1 + np.cos(np.pi / 4)) / 2, 0.05, 0.0]
    np.testing.assert_allclose([schedule(s) for s in (0, 2, 4, 6, 8, 12)], expected, atol=1e-8)


def test_matrices_decay_and_biases_do_not():
    found = updates(gradients())  # a constant gradient g makes Adam's step sign(g), at rate 0.05
    np.testing.assert_allclose(found["a"]["kernel"], np.full((2, 3), -0.05 * (1 + 0.5 * 2.0)), rtol=1e-5)
    np.testing.assert_allclose(found["a"]["bias"], np.full(3, 0.05), rtol=1e-5)
    np.testing.assert_allclose(found["b"]["kernel"], np.full(4, -0.05 * (1 - 0.5)), rtol=1e-5)


def test_rate_factors_scale_the_whole_step():
    plain, scaled = updates(gradients()), updates(gradients(), rate_factors=(("^a/", 0.1), ("", 3.0)))
    np.testing.assert_allclose(scaled["a"]["kernel"], 0.1 * plain["a"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(scaled["b"]["kernel"], 3.0 * plain["b"]["kernel"], rtol=1e-5)


def test_clipping_bounds_the_gradient_before_its_moments():
    """Adam is blind to a constant scale, so the first gradient alone is made too large."""
    optimizer = make_optimizer(PARAMS, **(SETTINGS | {"clip_norm": 1.0, "weight_decay": 0.0}))
    state = optimizer.init(PARAMS)
    _, state = optimizer.update(
        {k: {n: 1000 * g for n, g in v.items()} for k, v in gradients().items()}, state, PARAMS
    )
    found = optimizer.update(gradients(), state, PARAMS)[0]
    np.testing.assert_allclose(found["a"]["bias"], np.full(3, 0.05), rtol=1e-4)  # both clipped to the same


def test_rules_must_fit_the_parameters():
    with pytest.raises(
        ValueError, match=r"config.optimizer.rate_factors: no rule matches the parameters b/kernel"
    ):
        updates(gradients(), rate_factors=(("^a/", 0.1),))

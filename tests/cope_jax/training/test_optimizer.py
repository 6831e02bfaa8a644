"""AdamW against its formula, with decay, groups and clipping."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import cope_rope, cope_rope_sigmoid, default
from cope_jax.parallel.path_rules import leaf_paths
from cope_jax.runs.config import OptimizerConfig
from cope_jax.runs.config_validation import resolve_config
from cope_jax.runs.model import split_model
from cope_jax.training.objective import init_losses
from cope_jax.training.optimizer import layer_factors, make_optimizer, matches, rate_factors, stop_frozen_gradients

PARAMS = {
    "a": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full((3,), 2.0)},
    "b": {"kernel": jnp.full((4,), -1.0)},
}
SETTINGS = {
    "rate": 0.1,
    "groups": (("", 1.0),),
    "warmup_steps": 2,
    "cosine_steps": 0,
    "steps": 10,
    "b1": 0.9,
    "b2": 0.99,
    "weight_decay": 0.5,
    "decayed": "/kernel$",
    "clip_norm": 0.0,
    "clipped": "",
}


FROZEN_BIAS = (("a/bias", 0.0), ("", 1.0))


def optimizer_of(params, **settings):
    run = {name: settings.pop(name) for name in ("steps", "layer_decay") if name in settings}
    return make_optimizer(params, OptimizerConfig(**settings), groups=settings["groups"], **run)


def updates(gradients, **changed):
    """The second update, since the first one has rate 0."""
    optimizer = optimizer_of(PARAMS, **(SETTINGS | changed))
    state = optimizer.init(PARAMS)
    _, state = optimizer.update(gradients, state, PARAMS)
    return optimizer.update(gradients, state, PARAMS)[0]


def gradients():
    return {
        "a": {"kernel": jnp.full((2, 3), 3.0), "bias": jnp.full((3,), -4.0)},
        "b": {"kernel": jnp.full((4,), 0.5)},
    }


def test_the_rate_rises_linearly_and_falls_like_a_cosine():
    optimizer = optimizer_of(PARAMS, **(SETTINGS | {"warmup_steps": 4, "steps": 12, "weight_decay": 0.0}))
    state, rates = optimizer.init(PARAMS), []
    for _ in range(13):  # a constant gradient g makes Adam's step sign(g)
        found, state = optimizer.update(gradients(), state, PARAMS)
        rates.append(found["a"]["bias"][0])
    expected = [0.0, 0.05, 0.1, 0.1 * (1 + np.cos(np.pi / 4)) / 2, 0.05, 0.0]
    np.testing.assert_allclose(np.array(rates)[[0, 2, 4, 6, 8, 12]], expected, rtol=1e-5, atol=1e-8)


def test_matrices_decay_and_biases_do_not():
    found = updates(gradients())  # a constant gradient g makes Adam's step sign(g), at rate 0.05
    np.testing.assert_allclose(found["a"]["kernel"], np.full((2, 3), -0.05 * (1 + 0.5 * 2.0)), rtol=1e-5)
    np.testing.assert_allclose(found["a"]["bias"], np.full(3, 0.05), rtol=1e-5)
    np.testing.assert_allclose(found["b"]["kernel"], np.full(4, -0.05 * (1 - 0.5)), rtol=1e-5)


def test_the_rate_rises_again_after_the_cosine():
    changed = {"warmup_steps": 2, "cosine_steps": 6, "steps": 12, "weight_decay": 0.0}
    optimizer = optimizer_of(PARAMS, **(SETTINGS | changed))
    state, rates = optimizer.init(PARAMS), []
    for _ in range(12):  # a constant gradient g makes Adam's step sign(g)
        found, state = optimizer.update(gradients(), state, PARAMS)
        rates.append(found["a"]["bias"][0])
    expected = [0.0, 0.05, 0.1, 0.05, 0.0, 0.05, 0.1]
    np.testing.assert_allclose(np.array(rates)[[0, 1, 2, 4, 6, 8, 10]], expected, rtol=1e-5, atol=1e-8)


def test_all_parameters_can_decay():
    found = updates(gradients(), decayed="", weight_decay=0.2)
    np.testing.assert_allclose(found["a"]["bias"], np.full(3, 0.05 * (1 - 0.2 * 2.0)), rtol=1e-5)
    np.testing.assert_allclose(found["b"]["kernel"], np.full(4, -0.05 * (1 - 0.2)), rtol=1e-5)


def test_group_factors_scale_the_whole_step():
    plain, scaled = updates(gradients()), updates(gradients(), groups=(("^a/", 0.1), ("", 3.0)))
    np.testing.assert_allclose(scaled["a"]["kernel"], 0.1 * plain["a"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(scaled["b"]["kernel"], 3.0 * plain["b"]["kernel"], rtol=1e-5)


def test_clipping_bounds_the_gradient_before_its_moments():
    """Adam ignores a constant scale, so only the first gradient is too large."""
    optimizer = optimizer_of(PARAMS, **(SETTINGS | {"clip_norm": 1.0, "weight_decay": 0.0}))
    state = optimizer.init(PARAMS)
    _, state = optimizer.update({k: {n: 1000 * g for n, g in v.items()} for k, v in gradients().items()}, state, PARAMS)
    found = optimizer.update(gradients(), state, PARAMS)[0]
    np.testing.assert_allclose(found["a"]["bias"], np.full(3, 0.05), rtol=1e-4)  # both clipped to the same


def test_clipping_can_spare_some_parameters():
    """The others are clipped to a norm of their own. As before, only the first gradient is too large."""
    optimizer = optimizer_of(PARAMS, **(SETTINGS | {"clip_norm": 5.0, "clipped": "^a/", "weight_decay": 0.0}))
    large = {"a": {"kernel": jnp.full((2, 3), 30.0), "bias": jnp.full((3,), -40.0)}, "b": {"kernel": jnp.full(4, 5e3)}}
    norm = np.sqrt(6 * 30.0**2 + 3 * 40.0**2)
    state = optimizer.update(large, optimizer.init(PARAMS), PARAMS)[1]
    means = {leaf.shape: leaf for leaf in jax.tree.leaves(optax.tree.get(state, "mu"))}
    np.testing.assert_allclose(means[(2, 3)], np.full((2, 3), 0.1 * 30 * 5 / norm), rtol=1e-5)
    np.testing.assert_allclose(means[(3,)], np.full(3, 0.1 * -40 * 5 / norm), rtol=1e-5)
    np.testing.assert_allclose(means[(4,)], np.full(4, 0.1 * 5e3), rtol=1e-5)


def test_the_state_does_not_depend_on_clipping():
    """So a run may resume with another bound, or another choice of parameters."""
    kinds = ({}, {"clip_norm": 5.0}, {"clip_norm": 5.0, "clipped": "^a/"}, {"clipped": "^a/"})
    structures = {jax.tree.structure(optimizer_of(PARAMS, **(SETTINGS | kind)).init(PARAMS)) for kind in kinds}
    assert len(structures) == 1


def test_a_frozen_group_has_no_update_no_decay_and_no_moments():
    frozen = (("^a/", 0.0), ("", 1.0))
    found = updates(gradients(), groups=frozen)
    assert not any(leaf.any() for leaf in found["a"].values())
    np.testing.assert_allclose(found["b"]["kernel"], updates(gradients())["b"]["kernel"], rtol=1e-5)
    state = optimizer_of(PARAMS, **(SETTINGS | {"groups": frozen})).init(PARAMS)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state)) == [
        (),
        (),
        (4,),
        (4,),
    ]  # two counters, mu, nu


def test_a_frozen_group_does_not_change_even_if_its_gradient_is_nan():
    broken = gradients() | {"a": jax.tree.map(lambda g: g * np.nan, gradients()["a"])}
    found = updates(broken, groups=(("^a/", 0.0), ("", 1.0)), clip_norm=1.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_frozen_parameters_get_no_gradient():
    found = jax.grad(
        lambda params: sum(jnp.square(p).sum() for p in jax.tree.leaves(stop_frozen_gradients(params, FROZEN_BIAS)))
    )(PARAMS)
    assert not found["a"]["bias"].any()
    np.testing.assert_allclose(found["b"]["kernel"], np.full(4, -2.0))
    model = {"a": PARAMS["a"]}  # the groups of other parameters have no use here
    assert stop_frozen_gradients(model, (("^b/", 0.5), ("", 1.0)))["a"]["bias"] is PARAMS["a"]["bias"]


def test_groups_must_fit_the_parameters():
    with pytest.raises(ValueError, match=r"config.optimizer.groups: no rule matches the parameters b/kernel"):
        updates(gradients(), groups=(("^a/", 0.1),))
    with pytest.raises(ValueError, match=r"config.optimizer.groups: no parameter is left for '\^c/' among"):
        updates(gradients(), groups=(("^c/", 0.1), ("", 1.0)))


@pytest.mark.parametrize(("fusion", "more"), [("linear", []), ("transformer", ["query", "modality"])])
def test_matrices_and_word_vectors_of_the_full_model_decay(fusion, more):
    config = resolve_config(default.get_config(), {"model.fusion.kind": fusion})
    _, initialize = split_model(config, vocab_size=100)
    scalars = {"log_t": jnp.zeros(()), "bias": jnp.zeros(())}
    params = {"model": jax.eval_shape(initialize).params, "loss": scalars}
    names, decayed = {True: set(), False: set()}, matches(config.optimizer.decayed, params)
    for path, decay in zip(jax.tree.leaves(leaf_paths(params)), jax.tree.leaves(decayed), strict=True):
        names[decay].add(path.split("/")[-1])
    assert names[True] == {"kernel", "embedding"}
    assert names[False] == {"bias", "scale", "position", "segment", "class_token", "log_t", *more}


@pytest.mark.parametrize(
    ("recipe", "rates", "decayed", "clipped"),
    [
        (
            cope_rope,
            {"loss/classifier/table": 5e-3},
            {"loss/classifier/table", "model/vision/pre_norm/scale", "model/text/pooler/bias"},
            {"model/vision/pre_norm/scale", "model/text/pooler/bias"},
        ),
        (
            cope_rope_sigmoid,
            {"loss/sigmoid/log_t": 1e-3, "loss/sigmoid/bias": 1e-3},
            set(),
            {"loss/sigmoid/log_t", "loss/sigmoid/bias", "model/vision/pre_norm/scale", "model/text/pooler/bias"},
        ),
    ],
)
def test_the_recipes_treat_parameters_as_they_say(recipe, rates, decayed, clipped):
    changes = {"losses.classifier.classes": 50, "model.vision.depth": 2, "model.text.depth": 1}
    config = resolve_config(recipe.get_config(), changes)
    _, initialize = split_model(config, vocab_size=100)
    losses = jax.eval_shape(partial(init_losses, config))
    params = {"model": jax.eval_shape(initialize).params, "loss": losses}
    settings = config.optimizer
    paths = jax.tree.leaves(leaf_paths(params))
    found = dict(zip(paths, jax.tree.leaves(rate_factors(settings.groups, params)), strict=True))
    assert {path: settings.rate * factor for path, factor in found.items() if path.startswith("loss/")} == rates
    samples = {*rates, "model/vision/pre_norm/scale", "model/text/pooler/bias"}
    for pattern, expected in ((settings.decayed, decayed), (settings.clipped, clipped)):
        chosen = dict(zip(paths, jax.tree.leaves(matches(pattern, params)), strict=True))
        assert {path for path in samples if chosen[path]} == expected
        assert chosen["model/fusion/page/merge/linear/kernel"]


def test_rates_decay_by_layer_below_the_last_one():
    """With decay ½ and three layers: 1, ½, ¼ from the last to the first, and ⅛ for what precedes them."""
    layers = {"block": {"kernel": jnp.ones((3, 2, 5)), "bias": jnp.ones((3, 5))}}
    vision = {"stem": {"kernel": jnp.ones(2)}, "position": jnp.ones(2), "blocks": layers, "post_norm": jnp.ones(2)}
    params = {"model": {"vision": vision, "fusion": {"blocks": jnp.ones(2)}}, "loss": jnp.ones(())}
    found = layer_factors(0.5, params)
    of_vision = found["model"]["vision"]
    assert (of_vision["stem"]["kernel"], of_vision["position"], of_vision["post_norm"]) == (1 / 8, 1 / 8, 1)
    assert (found["model"]["fusion"]["blocks"], found["loss"]) == (1, 1)
    np.testing.assert_array_equal(of_vision["blocks"]["block"]["bias"], [[1 / 4], [1 / 2], [1]])
    assert of_vision["blocks"]["block"]["kernel"].shape == (3, 1, 1)
    settings = SETTINGS | {"layer_decay": 0.5, "weight_decay": 0.0}
    optimizer = optimizer_of(params, **settings)
    state = optimizer.init(params)
    for _ in range(2):
        changes, state = optimizer.update(params, state, params)
    kernel, head = changes["model"]["vision"]["blocks"]["block"]["kernel"], changes["loss"]
    np.testing.assert_allclose(kernel[:, 0, 0] / head, [1 / 4, 1 / 2, 1], rtol=1e-5)

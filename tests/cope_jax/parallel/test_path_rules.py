"""Rules over parameter paths."""

import numpy as np
import pytest

from cope_jax.parallel.path_rules import apply_rules, leaf_paths

TREE = {
    "model": {"blocks": {0: {"kernel": np.zeros(2), "bias": np.zeros(3)}}},
    "loss": {"bias": np.zeros(())},
}


def test_paths_join_keys_with_slashes():
    assert leaf_paths(TREE)["model"]["blocks"][0] == {
        "kernel": "model/blocks/0/kernel",
        "bias": "model/blocks/0/bias",
    }


def test_the_first_match_wins():
    found = apply_rules([("^loss", "a"), ("bias$", "b"), ("", "c")], TREE, name="rules")
    assert found == {"model": {"blocks": {0: {"kernel": "c", "bias": "b"}}}, "loss": {"bias": "a"}}


def test_uncovered_paths_are_listed():
    with pytest.raises(ValueError, match=r"rules: no rule matches the parameters loss/bias, model/blocks/0/bias; add"):
        apply_rules([("kernel", 1)], TREE, name="rules")


def test_an_unused_rule_is_an_error_unless_allowed():
    rules = [("", 1), ("kernel", 2)]
    with pytest.raises(ValueError, match="rules: no parameter is left for 'kernel' among loss/bias"):
        apply_rules(rules, TREE, name="rules")
    assert apply_rules(rules, TREE, name="rules", require_all_used=False)["loss"]["bias"] == 1

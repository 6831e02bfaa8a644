"""Rules over parameter paths: (regex, value), the first match wins."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree


def leaf_paths(tree: PyTree) -> PyTree:
    """Returns the tree with each leaf replaced by its path, keys joined by "/"."""
    return jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree)


def apply_rules(
    rules: Sequence[tuple[str, Any]],
    tree: PyTree,
    *,
    name: str,
    require_all_used: bool = True,
    exempt: Callable[[Any], bool] = lambda leaf: False,
    default: Any = None,
) -> PyTree:
    """Returns the tree with each leaf replaced by the value of the first rule whose regex is found in its path.

    Raises ValueError listing all paths without a rule, or all rules without a path.

    Args:
        rules: (regex, value) in order of precedence.
        tree: Any pytree.
        name: Name of the rules for errors, such as "config.optimizer.groups".
        require_all_used: Whether each rule must be the first match of some path.
        exempt: Whether a leaf may go without a rule.
        default: Value of exempt leaves without a rule.
    """
    used: set[int] = set()
    uncovered: list[str] = []

    def value(path: str, leaf: Any) -> Any:
        for i, (pattern, result) in enumerate(rules):
            if re.search(pattern, path):
                used.add(i)
                return result
        if not exempt(leaf):
            uncovered.append(path)
        return default

    values = jax.tree.map(value, leaf_paths(tree), tree)
    if uncovered:
        raise ValueError(f"{name}: no rule matches the parameters {', '.join(uncovered)}; add one")
    unused = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
    if unused and require_all_used:
        known = ", ".join(jax.tree.leaves(leaf_paths(tree)))
        raise ValueError(f"{name}: no parameter is left for {', '.join(map(repr, unused))} among {known}")
    return values

"""Rules over parameter paths: (regex, value), the first match wins."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax


def paths(tree: Any) -> Any:
    """The same tree with each leaf replaced by its path, keys joined by "/"."""
    return jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree)


def apply_rules(
    rules: Sequence[tuple[str, Any]],
    tree: Any,
    *,
    what: str,
    require_all_used: bool = True,
    exempt: Callable[[Any], bool] = lambda leaf: False,
    default: Any = None,
) -> Any:
    """Gives each leaf the value of the first rule whose regex is found in its path.

    Args:
        rules: (regex, value) in order of precedence.
        tree: any pytree.
        what: what the rules are, for the errors: "config.optimizer.groups".
        require_all_used: whether a rule that no path is left for is an error.
        exempt: says of a leaf whether it may go without a rule.
        default: the value of such leaves.

    Returns:
        The tree of values.

    Raises:
        ValueError: some paths match no rule, or some rules match no path; all of them are listed.
    """
    used, uncovered = set(), []

    def value(path: str, leaf: Any) -> Any:
        for i, (pattern, result) in enumerate(rules):
            if re.search(pattern, path):
                used.add(i)
                return result
        if not exempt(leaf):
            uncovered.append(path)
        return default

    values = jax.tree.map(value, paths(tree), tree)
    if uncovered:
        raise ValueError(f"{what}: no rule matches the parameters {', '.join(uncovered)}; add one for them")
    unused = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
    if unused and require_all_used:
        known = ", ".join(jax.tree.leaves(paths(tree)))
        raise ValueError(f"{what}: no parameter is left for {', '.join(map(repr, unused))} among {known}")
    return values

"""Nested mappings with dotted keys, and their differences in words."""

from collections.abc import Callable, Mapping
from typing import Any


def flatten_keys(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins the keys of nested mappings with dots: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def describe_differences(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    *,
    labels: tuple[str, str] = ("before", "now"),
    show: Callable[[Any], str] = repr,
) -> list[str]:
    """Returns "key: 1 before, 2 now" for each key whose values differ, sorted by key; "nothing" stands for no value."""

    def value(mapping: Mapping[str, Any], key: str) -> str:
        return show(mapping[key]) if key in mapping else "nothing"

    return [
        f"{key}: {value(first, key)} {labels[0]}, {value(second, key)} {labels[1]}"
        for key in sorted(first.keys() | second.keys())
        if key not in first or key not in second or first[key] != second[key]
    ]

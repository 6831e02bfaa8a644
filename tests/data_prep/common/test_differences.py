"""Differences of mappings in words."""

from data_prep.common.differences import describe_differences, flatten_keys


def test_changed_added_and_removed_values_are_listed_by_key():
    first, second = {"same": 1, "size": 3, "gone": None}, {"size": 4, "same": 1, "added": "x"}
    assert describe_differences(first, second) == [
        "added: nothing before, 'x' now",
        "gone: None before, nothing now",
        "size: 3 before, 4 now",
    ]
    assert describe_differences(second, second) == []
    assert describe_differences({"a": "x"}, {"a": "y"}, labels=("here", "there"), show=str) == ["a: x here, y there"]


def test_keys_of_nested_mappings_are_joined():
    assert flatten_keys({"a": {"b": 1, "c": {"d": [2]}}, "e": 3}) == {"a.b": 1, "a.c.d": [2], "e": 3}

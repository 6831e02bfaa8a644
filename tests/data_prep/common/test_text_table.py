"""Aligned columns of text."""

from data_prep.common.text_table import text_table


def test_columns_are_as_wide_as_their_widest_cell():
    assert text_table([("name", "n", "note"), ("a", "100", "x"), ("long name", "7", "")], left=(0, 2)) == (
        "name         n  note\n────────────────────\na          100  x\nlong name    7"
    )

"""Tests of the pairs and directions of the three domains."""

from data_prep.common.domains import DIRECTIONS, PAIRS


def test_pairs_and_directions_are_those_of_the_paper():
    assert PAIRS == (("page", "video"), ("page", "live"), ("video", "live"))
    assert list(DIRECTIONS) == ["p2v", "v2p", "p2l", "l2p", "v2l", "l2v"]
    assert DIRECTIONS["l2p"] == ("live", "page")

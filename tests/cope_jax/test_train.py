"""Flags of the command train."""

import pytest

from cope_jax.train import parse_steps


def test_steps_are_parsed():
    assert parse_steps("10:15") == (10, 15)
    assert parse_steps("7:7") == (7, 7)
    assert parse_steps("") is None


@pytest.mark.parametrize("text", ["10", "10:", ":15", "15:10", "0:3", "a:b", "1:2:3"])
def test_invalid_steps_are_errors(text):
    with pytest.raises(ValueError, match=f"--profile_steps is '{text}'; it must be FIRST:LAST, such as 10:15"):
        parse_steps(text)

"""The domains in which products are shown, and the ways to pair them."""

from itertools import combinations

from data_prep.common.domains import DOMAINS

# The pairs that contrastive losses compare: (page, video), (page, live), (video, live).
PAIRS = tuple(combinations(DOMAINS, 2))

# The ordered pairs that retrieval and few-shot classification are judged by, in COPE's order of tables.
DIRECTIONS = tuple(direction for a, b in PAIRS for direction in ((a, b), (b, a)))


def direction_name(source: str, target: str) -> str:
    """A direction as tables and metrics call it: ("page", "video") → "p2v"."""
    return f"{source[0]}2{target[0]}"

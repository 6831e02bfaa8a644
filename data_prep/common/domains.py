"""The domains in which products are shown, in the order used everywhere, and the ways to pair them."""

from itertools import combinations

DOMAINS = ("page", "video", "live")
# Domains whose frames are pictures, the main one first; frames of the others are moments of a clip.
PICTURE_DOMAINS = frozenset({"page"})
# The pairs that contrastive losses compare: (page, video), (page, live), (video, live).
PAIRS = tuple(combinations(DOMAINS, 2))


def direction_name(source: str, target: str) -> str:
    """Returns the name of a direction in tables and metrics: ("page", "video") → "p2v"."""
    return f"{source[0]}2{target[0]}"


# The ordered pairs of retrieval and few-shot classification, by name, in the order of COPE's tables.
DIRECTIONS = {direction_name(a, b): (a, b) for pair in PAIRS for a, b in (pair, pair[::-1])}

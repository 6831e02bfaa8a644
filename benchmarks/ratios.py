"""How two ways that took turns compare."""

from collections.abc import Sequence
from statistics import median
from typing import Any


def ratio(name: str, own: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Own over other, a number of each a round: the median of the rounds' ratios, the least and the largest.

    >>> ratio("ratio", [2, 3, 8], [2, 2, 2])
    {'ratio': 1.5, 'ratio_spread': [1.0, 4.0]}
    """
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    return {name: round(median(ratios), 3), f"{name}_spread": [round(min(ratios), 3), round(max(ratios), 3)]}

"""Where a model fails: retrieval of the queries that have many frames or few, that have a text or none.

Categories would belong here; the records know none.
"""

from collections.abc import Mapping

import numpy as np

from cope_jax.evaluation.metrics.ranks import Ranks
from cope_jax.evaluation.metrics.retrieval import Metrics, summary

Breakdown = dict[str, dict[str, Metrics]]  # direction → part → metrics


def by_frames(ranks: Mapping[str, Ranks], frames: Mapping[str, np.ndarray]) -> Breakdown:
    """By how many frames the queries of each direction have, i32[Q]: parts "0", "1", "2-3", "4-7", …"""
    return {name: by_part(of_direction, frame_parts(frames[name])) for name, of_direction in ranks.items()}


def by_text(ranks: Mapping[str, Ranks], has_text: Mapping[str, np.ndarray]) -> Breakdown:
    """By whether the queries of each direction have a text, bool[Q]: parts "with" and "without"."""
    return {
        name: by_part(of_direction, np.where(has_text[name], "with", "without")) for name, of_direction in ranks.items()
    }


def by_part(ranks: Ranks, parts: np.ndarray) -> dict[str, Metrics]:
    """The metrics of the queries of each part that has one with a positive.

    Args:
      parts: str[Q].
    """
    return {str(part): summary(ranks, parts == part) for part in np.unique(parts[ranks.asked])}


def frame_parts(frames: np.ndarray) -> np.ndarray:
    """Numbers of frames → the powers of two that they lie between.

    0, 1, 2, 3, 4, 8 → "0", "1", "2-3", "2-3", "4-7", "8-15"
    """

    def part(count: int) -> str:
        low = 1 << (count.bit_length() - 1) if count else 0
        return str(low) if low < 2 else f"{low}-{2 * low - 1}"

    return np.array([part(count) for count in frames.tolist()])

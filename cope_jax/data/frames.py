"""The choice of T of a clip's n frames, in time order."""

import numpy as np

SHORT_CLIPS = ("repeat", "mask")
FRAME_CHOICES = ("random", "center")


def one_per_segment(n: int, T: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Returns one frame of each of T equal segments of n frames: i64[T].

    These are floor((i+u)·n / T), with u uniform in [0, 1), or 1/2 without `rng`: the centers. With `rng`, every frame
    is equally likely; if n is not a multiple of T, a frame in two segments can be drawn twice.

    >>> one_per_segment(16, 8).tolist()
    [1, 3, 5, 7, 9, 11, 13, 15]
    >>> one_per_segment(5, 4).tolist()
    [0, 1, 3, 4]
    >>> one_per_segment(2, 4).tolist()  # fewer frames than positions: frames repeat
    [0, 0, 1, 1]
    >>> one_per_segment(2, 4, np.random.default_rng(0)).tolist()
    [0, 0, 1, 1]
    """
    if n < 1 or T < 1:
        raise ValueError(f"cannot choose {T} of {n} frames; both must be at least 1")
    positions = np.floor((np.arange(T) + (0.5 if rng is None else rng.random(T))) * n / T).astype(np.int64)
    return np.minimum(positions, n - 1)  # (T - ε)·n/T may round up to n


def choose_frames(n: int, T: int, *, kind: str, short_clips: str, rng: np.random.Generator | None) -> np.ndarray:
    """Returns the positions of the frames to use: random ones of equal segments, or segment centers without `rng`.

    Of more than T pictures of an image domain, the first T are used, because the main picture of a product comes first.

    Args:
        n: Frames of the clip; without frames there are no positions.
        T: Frames wanted.
        kind: Kind of the domain, "image" or "clip".
        short_clips: What to do if n < T: "repeat" frames to get T, or "mask", which returns each position once and
            leaves T − n to be masked.
        rng: Random numbers; None for segment centers.

    >>> choose_frames(3, 5, kind="clip", short_clips="mask", rng=None).tolist()
    [0, 1, 2]
    >>> choose_frames(3, 5, kind="clip", short_clips="repeat", rng=None).tolist()
    [0, 0, 1, 2, 2]
    >>> choose_frames(5, 1, kind="clip", short_clips="repeat", rng=None).tolist()
    [2]
    >>> choose_frames(5, 1, kind="image", short_clips="repeat", rng=None).tolist()
    [0]
    """
    if short_clips not in SHORT_CLIPS:
        raise ValueError(f"short_clips is {short_clips!r}; choose one of {', '.join(SHORT_CLIPS)}")
    if n == 0 or (n < T and short_clips == "mask"):
        return np.arange(n)
    if n > T and kind == "image":
        return np.arange(T)
    return one_per_segment(n, T, rng)

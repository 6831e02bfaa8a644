"""Which frames of a clip are taken: T positions among its n frames, in time order."""

import numpy as np

from cope_jax.domains import PICTURE_DOMAINS

SHORT_CLIPS = ("repeat", "mask")


def centres(n: int, T: int) -> np.ndarray:
    """The middles of T equal segments of n frames, floor((2i+1)·n / 2T): i64[T].

    >>> centres(16, 8).tolist()
    [1, 3, 5, 7, 9, 11, 13, 15]
    >>> centres(5, 4).tolist()
    [0, 1, 3, 4]
    >>> centres(2, 4).tolist()  # fewer frames than positions: frames repeat
    [0, 0, 1, 1]
    """
    _check(n, T)
    return (2 * np.arange(T) + 1) * n // (2 * T)


def jittered(n: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """One frame at random in each of T equal segments of n frames, floor((i+u)·n / T): i64[T].

    u is uniform in [0, 1) for each i, so every frame is equally likely; u = 1/2 would give `centres`. With
    n = 16 and T = 8 the first is 0 or 1, the second 2 or 3, and so on. Where n is no multiple of T, a frame
    that lies in two segments can be taken twice; fewer frames than positions repeat.

    >>> jittered(2, 4, np.random.default_rng(0)).tolist()
    [0, 0, 1, 1]
    """
    _check(n, T)
    positions = np.floor((np.arange(T) + rng.random(T)) * n / T).astype(np.int64)
    return np.minimum(positions, n - 1)  # (T - ε)·n/T may round up to n


def choose(n: int, T: int, *, domain: str, short_clips: str, rng: np.random.Generator | None) -> np.ndarray:
    """Positions of the frames to take, i64[min(n, T)] or i64[T]: `jittered` with an rng, `centres` without.

    Pages show pictures, not moments of a clip: of more than T pictures, the first T are taken, because the main picture
    of a product comes first.

    Of a clip with n < T frames, "repeat" takes frames more than once to make T, "mask" takes each once and
    leaves T − n places to be masked. A clip without frames gives no positions.

    >>> choose(3, 5, domain="video", short_clips="mask", rng=None).tolist()
    [0, 1, 2]
    >>> choose(3, 5, domain="video", short_clips="repeat", rng=None).tolist()
    [0, 0, 1, 2, 2]
    >>> choose(5, 1, domain="video", short_clips="repeat", rng=None).tolist()
    [2]
    >>> choose(5, 1, domain="page", short_clips="repeat", rng=None).tolist()
    [0]

    Raises:
      ValueError: short_clips is neither.
    """
    if short_clips not in SHORT_CLIPS:
        raise ValueError(f"short_clips is {short_clips!r}; choose one of {', '.join(SHORT_CLIPS)}")
    if n == 0 or (n < T and short_clips == "mask"):
        return np.arange(n)
    if n > T and domain in PICTURE_DOMAINS:
        return np.arange(T)
    return centres(n, T) if rng is None else jittered(n, T, rng)


def _check(n: int, T: int) -> None:
    if n < 1 or T < 1:
        raise ValueError(f"cannot take {T} of {n} frames; both must be at least 1")

"""Near-duplicates: pictures that are the same photo, compressed, resized, cropped, mirrored or with a caption.

A picture has a descriptor of the whole and of all but its top or bottom, where captions are: orientations of gradients
in 4×4 cells, as in SIFT, and colors. Neighbors among the descriptors, found by faiss, are candidates. They are the same
photo if thumbnails agree in detail, and everywhere in color, after an affine alignment.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data_prep.common.process_pool import ProcessMap

SIDE, COLOR_SIDE = 48, 8  # pixels of a thumbnail: its luma, and its two chroma planes
THUMBNAIL = SIDE**2 + 2 * COLOR_SIDE**2  # bytes
REGIONS = (slice(0, 48), slice(0, 41), slice(7, 48))  # rows of a thumbnail: all, no caption below, none above
CELLS, BINS, COLOR_WEIGHT = 4, 8, 0.5
WIDTH = CELLS**2 * (BINS + 2)  # bytes of a descriptor
NEIGHBORS = 8  # candidates of a descriptor
MAX_DISTANCE = 0.3 * 255  # the farthest of 600 copies was at 0.21 * 255
MIN_AGREEMENT = 0.92  # correlation of details; of crops at least 0.96
# Levels by which means of a fifth of both sides may differ: crops by 8 and 14, packages of one design by 16 and more.
MAX_LUMA, MAX_CHROMA, _LOCAL = 12, 18, (9, 9)
_LISTS_VISITED, _TRAINING_ROWS, _BLOCK = 6, 40, 1 << 16  # of faiss: lists per query, rows per list; queries at once
_COMPARED = 2000  # candidates compared by a process at once
_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_STOP = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)


class Candidates(NamedTuple):
    """Pairs of pictures, and how they may correspond."""

    rows: np.ndarray  # int64[K, 2]
    regions: np.ndarray  # int64[K, 2]
    mirrored: np.ndarray  # bool[K]


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Returns the luma and the chroma of a picture uint8[H, W, 3] as uint8[THUMBNAIL]."""
    square = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    luma, *chroma = cv2.split(cv2.cvtColor(square, cv2.COLOR_RGB2YCrCb))
    small = [cv2.resize(plane, (COLOR_SIDE, COLOR_SIDE), interpolation=cv2.INTER_AREA) for plane in chroma]
    return np.concatenate([plane.ravel() for plane in (luma, *small)])


def describe(thumbnails: np.ndarray) -> np.ndarray:
    """Returns the descriptors of thumbnails: uint8[N, len(REGIONS), WIDTH]."""
    parts = [_describe_region(thumbnails, region) for region in range(len(REGIONS))]
    return np.stack(parts, axis=1)


def _describe_region(thumbnails: np.ndarray, region: int) -> np.ndarray:
    planes = [_region_planes(row, region, mirrored=False) for row in thumbnails]
    luma, chroma = (np.stack([own[i] for own in planes]) for i in (0, slice(1, None)))
    dy, dx = np.gradient(luma, axis=(1, 2))
    angle = np.arctan2(dy, dx) / (2 * np.pi) * BINS
    low = np.floor(angle)
    share = angle - low
    places = (np.arange(SIDE) + 0.5) / SIDE * CELLS - 0.5
    cells = np.maximum(0, 1 - np.abs(places - np.arange(CELLS)[:, None])).astype(np.float32)  # overlapping

    def pool(values: np.ndarray) -> np.ndarray:
        return (cells @ values @ cells.T).reshape(*values.shape[:-2], -1)

    strength = np.hypot(dx, dy)
    bins = [pool(strength * ((low % BINS == b) * (1 - share) + ((low + 1) % BINS == b) * share)) for b in range(BINS)]
    gradients = np.stack(bins, axis=-1).reshape(len(luma), -1)
    gradients = np.sqrt(gradients / (gradients.sum(axis=-1, keepdims=True) + 1e-3))
    colors = pool(chroma - 128) / cells.sum() ** 2 * CELLS**2 / 128  # means of cells, from -1 to 1
    colors = 0.5 + COLOR_WEIGHT * colors.reshape(len(luma), -1)
    return np.clip(np.rint(255 * np.concatenate([gradients, colors], axis=-1)), 0, 255).astype(np.uint8)


def mirror(descriptors: np.ndarray) -> np.ndarray:
    """Returns the descriptors [..., WIDTH] of the mirror images."""
    numbers = np.arange(WIDTH)
    gradients = numbers[: CELLS**2 * BINS].reshape(CELLS, CELLS, BINS)[:, ::-1, (BINS // 2 - np.arange(BINS)) % BINS]
    colors = numbers[CELLS**2 * BINS :].reshape(2, CELLS, CELLS)[..., ::-1]
    return descriptors[..., np.concatenate([gradients.ravel(), colors.ravel()])]


def find_candidates(descriptors: np.ndarray, start: int) -> Iterator[Candidates]:
    """Yields pairs of pictures with close descriptors, each pair once.

    Args:
        descriptors: uint8[N, len(REGIONS), WIDTH]; may be a memory-mapped file.
        start: The pictures from here on are searched: the second of a pair is one of them, and the first is before it.
    """
    import faiss  # here, so that the processes that compare thumbnails need not import it

    per_picture = len(REGIONS)
    size, count = _BLOCK // per_picture, (len(descriptors) - start) * per_picture
    lists = int(np.clip(2 * count**0.5, 1, 4096))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatL2(WIDTH), WIDTH, lists, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2, False
    )
    index.cp.niter, index.cp.min_points_per_centroid, index.nprobe = 6, 1, _LISTS_VISITED
    step = max(1, count // (_TRAINING_ROWS * lists))
    index.train(descriptors[start::step].reshape(-1, WIDTH).astype(np.float32))
    for row in range(start, len(descriptors), size):
        index.add(descriptors[row : row + size].reshape(-1, WIDTH).astype(np.float32))
    for row in range(0, len(descriptors), size):
        parts = []
        for mirrored in (False, True):
            block = np.asarray(descriptors[row : row + size])
            queries = (mirror(block) if mirrored else block).reshape(-1, WIDTH).astype(np.float32)
            distances, found = index.search(queries, NEIGHBORS)
            query, place = np.nonzero((distances <= MAX_DISTANCE**2) & (found >= 0))
            target = found[query, place]
            first, second = row + query // per_picture, start + target // per_picture
            regions = [query % per_picture, target % per_picture]
            parts.append(np.stack([first, second, *regions, query * 0 + mirrored, distances[query, place]]))
        pairs = np.concatenate(parts, axis=-1)
        pairs = pairs[:, pairs[0] < pairs[1]]
        pairs = pairs[:, np.argsort(pairs[-1], kind="stable")]  # the closest regions of each pair
        numbers = pairs[:5].astype(np.int64)
        chosen = np.unique(numbers[0] * len(descriptors) + numbers[1], return_index=True)[1]
        yield Candidates(numbers[:2, chosen].T, numbers[2:4, chosen].T, numbers[4, chosen] == 1)


def is_same_photo(a: np.ndarray, b: np.ndarray, regions: Sequence[int] = (0, 0), *, mirrored: bool = False) -> bool:
    """Whether regions of two thumbnails agree after an affine alignment; `mirrored` mirrors the first one."""
    own, other = _region_planes(a, regions[0], mirrored), _region_planes(b, regions[1], mirrored=False)
    try:
        _, matrix = cv2.findTransformECC(own[0], other[0], np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, _STOP)
    except cv2.error:  # it does not converge
        return False
    if np.abs(matrix - np.eye(2, 3))[:, :2].max() > 0.25 or np.abs(matrix[:, 2]).max() > SIDE / 4:
        return False
    warped = [cv2.warpAffine(plane, matrix, (SIDE, SIDE), flags=_WARP) for plane in (_details(other[0]), *other)]
    inside = cv2.warpAffine(np.ones((SIDE, SIDE), np.float32), matrix, (SIDE, SIDE), flags=_WARP) > 0.999
    inside[[0, 1, 2, -3, -2, -1]] = inside[:, [0, 1, 2, -3, -2, -1]] = False
    x, y = _details(own[0])[inside], warped[0][inside]
    if inside.mean() < 0.4 or min(x.std(), y.std()) < 0.5:  # nothing to see
        return False
    known = cv2.blur(inside.astype(np.float32), _LOCAL)
    largest = []
    for one, two in zip(own, warped[1:], strict=True):
        difference = np.abs(cv2.blur(np.where(inside, one - two, 0), _LOCAL)) / np.maximum(known, 0.7)
        largest.append(difference[known > 0.7].max(initial=0))
    agrees = np.corrcoef(x, y)[0, 1] >= MIN_AGREEMENT
    return bool(agrees and largest[0] <= MAX_LUMA and max(largest[1:]) <= MAX_CHROMA)


def _region_planes(row: np.ndarray, region: int, mirrored: bool) -> list[np.ndarray]:
    """Luma and chroma of a region of a thumbnail, each float32[SIDE, SIDE]."""
    luma = row[: SIDE**2].reshape(SIDE, SIDE)
    chroma = row[SIDE**2 :].reshape(2, COLOR_SIDE, COLOR_SIDE)
    planes = [luma, *(cv2.resize(plane, (SIDE, SIDE)) for plane in chroma)]
    planes = [cv2.resize(plane[REGIONS[region]].astype(np.float32), (SIDE, SIDE)) for plane in planes]
    return [np.ascontiguousarray(plane[:, ::-1]) for plane in planes] if mirrored else planes


def _details(luma: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(luma, (0, 0), 0.8) - cv2.GaussianBlur(luma, (0, 0), 2.5)


def compare(file: Path, candidates: Candidates) -> np.ndarray:
    """Returns which candidates are the same photo: bool[K]. The file has all thumbnails, uint8[N, THUMBNAIL]."""
    cv2.setNumThreads(1)
    result = np.zeros(len(candidates.rows), bool)
    with file.open("rb") as source:

        def read(row: int) -> np.ndarray:  # not memory-mapped, so that pages of the file do not count as memory
            source.seek(row * THUMBNAIL)
            return np.frombuffer(source.read(THUMBNAIL), np.uint8)

        for number, ((a, b), regions, mirrored) in enumerate(zip(*candidates, strict=True)):
            result[number] = is_same_photo(read(a), read(b), regions, mirrored=mirrored)
    return result


def find_near_duplicates(
    descriptors: np.ndarray, file: Path, splits: Sequence[range], products: np.ndarray, apply: ProcessMap
) -> np.ndarray:
    """Finds pairs of near-duplicates in different splits, or in one split but of different products.

    Args:
        descriptors: Of all pictures; see `find_candidates`.
        file: Their thumbnails; see `compare`.
        splits: Consecutive ranges of pictures.
        products: int64[N], a product of each picture.
        apply: Runs the comparisons in processes.

    Returns:
        int64[K, 2], sorted. Of a picture with many close neighbors, only the pairs with the closest are found.
    """
    pairs = [np.zeros((0, 2), np.int64)]
    for split in filter(len, splits):
        for found in find_candidates(descriptors[: split.stop], split.start):
            a, b = found.rows.T
            wanted = np.flatnonzero((a < split.start) | (products[a] != products[b]))
            chunks = [wanted[first : first + _COMPARED] for first in range(0, len(wanted), _COMPARED)]
            parts = [Candidates(*(column[chunk] for column in found)) for chunk in chunks]
            for number, same in apply(functools.partial(compare, file), parts):
                pairs.append(parts[number].rows[same])
    result = np.concatenate(pairs)
    return result[np.lexsort(result.T[::-1])]

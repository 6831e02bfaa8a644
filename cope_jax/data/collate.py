"""Collates items of a domain into the arrays of a batch (see `cope_jax.data`), and numbers products as classes."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from cope_jax.data.frames import FRAME_CHOICES, choose_frames
from cope_jax.data.images import EvalTransform, TrainTransform
from cope_jax.data.records import InvalidItemError, Item, Records
from cope_jax.data.tokenizer import TextAugment, encode
from data_prep.common.domains import KINDS

NO_PRODUCT = -1
NO_CLASS = -1
MAX_ID = np.iinfo(np.int32).max
PARTS = 4  # of a batch per thread: fewer leave threads idle at its end, more cost time to hand over


@dataclass(frozen=True)
class Example:
    """An item for a batch; without `product` and `rng` in evaluation."""

    item: Item
    product: int | None = None  # for which the item was drawn
    rng: np.random.Generator | None = None
    place: Callable[[], str] | None = None  # returns the place of its record, for error messages
    row: int = -1  # of the item


class Threads:
    """Threads that share the rows of batches. A copy in another process has threads of its own.

    Args:
        count: Number of threads; with 0, the caller does all the work.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool = ThreadPoolExecutor(count, "batches") if count else None  # its threads start when they are needed

    def __reduce__(self) -> tuple[type["Threads"], tuple[int]]:
        return Threads, (self.count,)

    def for_each(self, function: Callable[[int], None], rows: int) -> None:
        """Calls a function with each row, in any order, and raises its error, if any."""
        if self.pool is None:
            for row in range(rows):
                function(row)
            return

        def call(part: range) -> None:
            for row in part:
                function(row)

        size = -(-rows // (PARTS * self.count))
        for _ in self.pool.map(call, [range(rows)[start : start + size] for start in range(0, rows, size)]):
            pass

    def close(self) -> None:
        """Ends the threads after their current rows."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Collator:
    """Makes the arrays of one domain: chooses and decodes frames, encodes texts, lists products."""

    domain: str
    T: int  # number of frames
    transform: TrainTransform | EvalTransform
    tokenizer: PreTrainedTokenizerFast
    text_length: int  # number of tokens
    max_products: int = 4  # per item, see `kept_products`
    short_clips: str = "repeat"  # or "mask", see `choose_frames`
    augment: TextAugment | None = None
    frame_choice: str = "random"  # or "center", in training
    kind: str = "clip"  # of the domain, or "image"
    entry: str = ""  # name in the batch; by default the domain, or `second_item` of it
    template: str = "{}"  # of texts
    clean_texts: bool = False  # see `Item.clean_text`

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r} of {self.domain}; choose one of {', '.join(KINDS)}")
        if self.frame_choice not in FRAME_CHOICES:
            raise ValueError(f"unknown frame choice {self.frame_choice!r}; choose one of {', '.join(FRAME_CHOICES)}")
        if self.T < 1:
            raise ValueError(f"{self.domain} has {self.T} frames; it needs at least 1")

    def __call__(
        self,
        candidates: Sequence[Iterable[Example]],
        on_invalid: Callable[[int, InvalidItemError], None] | None = None,
        threads: Threads | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the arrays of the domain.

        Each row of the batch uses the first of its candidates that decodes; it has none if the domain is missing.
        `on_invalid` is called with the row and the error of each skipped example; without it, errors are raised.
        `threads` call it and read the candidates; without them, the caller does.
        """
        B, size = len(candidates), self.transform.size
        frames = np.empty((B, self.T, size, size, 3), np.uint8)
        frame_mask = np.zeros((B, self.T), bool)
        products = np.full((B, self.max_products), NO_PRODUCT, np.int32)
        present = np.zeros(B, bool)
        texts = [""] * B

        def fill(b: int) -> None:
            count = 0
            for example in candidates[b]:
                try:
                    count = self._decode(example, frames[b])
                except InvalidItemError as error:
                    if on_invalid is None:
                        raise
                    on_invalid(b, error)
                    continue
                kept = kept_products(example.item.product_ids, example.product, self.max_products)
                products[b, : len(kept)] = kept
                present[b] = True
                texts[b] = example.item.clean_text if self.clean_texts else example.item.text
                if self.augment and example.rng:
                    texts[b] = self.augment(texts[b], example.rng)
                break
            frame_mask[b, :count] = True
            frames[b, count:] = 0

        (threads or Threads(0)).for_each(fill, B)
        return {
            "frames": frames,
            "frame_mask": frame_mask,
            "text": encode(self.tokenizer, texts, self.text_length, self.template),
            "present": present,
            "products": products,
        }

    def _decode(self, example: Example, out: np.ndarray) -> int:
        """Writes the chosen frames of an item to the start of u8[T, H, W, 3] and returns their number."""
        item, rng = example.item, example.rng
        positions = choose_frames(
            len(item.frames),
            self.T,
            kind=self.kind,
            short_clips=self.short_clips,
            rng=rng if self.frame_choice == "random" else None,
        )
        if not len(positions):
            return 0
        # A repeated frame is decoded once: crop and jitter are the same for the whole clip.
        wanted = positions.tolist()
        decoded = list(dict.fromkeys(wanted))
        try:
            self.transform([item.frames[position] for position in decoded], rng, out[: len(decoded)])
        except ValueError as error:
            place = f", {example.place()}" if example.place else ""
            raise InvalidItemError(f"{self.domain} item {item.own_id}{place}: {error}") from error
        if len(decoded) < len(wanted):
            for t in reversed(range(len(wanted))):  # in reverse, so that no frame is overwritten before it is copied
                out[t] = out[decoded.index(wanted[t])]
        return len(wanted)


def drop_modalities(arrays: dict[str, Any], probabilities: tuple[float, float], seeds: Sequence[Sequence[int]]) -> None:
    """Masks the frames or the text of random items of a domain that have both (modality dropout), in place.

    Args:
        arrays: Arrays of the domain, from a collator.
        probabilities: Of losing the frames, and of losing the text.
        seeds: Seed of each item's draw.
    """
    features = arrays.get("features")
    has = features.has_inputs if features else np.stack([arrays["frame_mask"].any(-1), arrays["text"].any(-1)], axis=-1)
    draws = np.array([np.random.default_rng(seed).random() for seed in seeds])
    drawn = np.stack([draws < probabilities[0], draws >= 1 - probabilities[1]], axis=-1)
    lost = drawn & has.all(axis=-1, keepdims=True)
    if features:
        arrays["features"] = features._replace(has_inputs=has & ~lost)
    else:
        arrays["frame_mask"] &= ~lost[:, :1]
        arrays["text"][lost[:, 1]] = 0


class ItemFeatures(NamedTuple):
    """Outputs of frozen encoders for the rows of a domain, or for the items of a batch."""

    vision: Any  # float32[N, D], vectors of the frames
    text: Any  # float32[N, D], vectors of the texts; of any width if the domain's texts are not used
    has_inputs: Any  # bool[N, 2], whether an item has frames and a text


@dataclass(frozen=True)
class FeatureCollator:
    """Makes the arrays of one domain from kept outputs of frozen encoders, without decoding anything."""

    domain: str
    features: ItemFeatures  # of all rows
    max_products: int
    entry: str = ""

    def __call__(
        self, candidates: Sequence[Iterable[Example]], on_invalid: object = None, threads: object = None
    ) -> dict[str, Any]:
        """Returns the arrays of the domain; see `Collator`. Items without any input are skipped."""
        present = np.zeros(len(candidates), bool)
        products = np.full((len(candidates), self.max_products), NO_PRODUCT, np.int32)
        rows = np.zeros(len(candidates), np.int64)
        for b, examples in enumerate(candidates):
            for example in examples:
                if self.features.has_inputs[example.row].any():
                    kept = kept_products(example.item.product_ids, example.product, self.max_products)
                    present[b], rows[b], products[b, : len(kept)] = True, example.row, kept
                    break
        arrays = ItemFeatures(*(array[rows] for array in self.features))
        arrays = arrays._replace(has_inputs=arrays.has_inputs & present[:, None])
        return {"features": arrays, "present": present, "products": products}


def kept_products(product_ids: Sequence[int], drawn: int | None, limit: int) -> list[int]:
    """Returns the `limit` smallest product ids in ascending order, with the drawn one always among them.

    (3, 5, 8, 9) with limit 2 gives [3, 5]; with 9 drawn it gives [3, 9].
    """
    kept = sorted(product_ids)[:limit]
    if drawn is not None and drawn not in kept:
        kept = [*kept[: limit - 1], drawn]
    return [check_id(product) for product in kept]


def check_id(product: int) -> int:
    """Returns a product id if it fits the int32 of batches (−1 means none), else raises ValueError."""
    if not 0 <= product <= MAX_ID:
        raise ValueError(f"product id {product} is outside 0 … {MAX_ID}, the range of batches; renumber the products")
    return product


def class_ids(records: Records) -> np.ndarray:
    """Returns the product ids of a split in ascending order, int32[C]: class c is the product with the c-th id."""
    return np.array([check_id(number) for number in np.unique(records.products.ids()).tolist()], np.int32)


def to_classes(products: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """Converts product ids of any shape to classes, int32; −1 for padding and for products without a class.

    With class ids (3, 5, 9), [[5, -1], [9, 4]] gives [[1, -1], [2, -1]].
    """
    place = np.minimum(np.searchsorted(class_ids, products), len(class_ids) - 1)
    return np.where(class_ids[place] == products, place, NO_CLASS).astype(np.int32)

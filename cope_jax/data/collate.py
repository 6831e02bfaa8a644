"""Items of one domain → the domain's arrays of a batch (the leaf described in `cope_jax.data`)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from cope_jax.data.bad_items import BadItem
from cope_jax.data.frames import choose
from cope_jax.data.images import EvalView, TrainView
from cope_jax.data.records import Item
from cope_jax.data.tokenizer import TextAugment, encode

NO_PRODUCT = -1
LARGEST_ID = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Example:
    """An item, the product it was drawn for and its random numbers, both None in evaluation; place tells its record."""

    item: Item
    product: int | None = None
    rng: np.random.Generator | None = None
    place: Callable[[], str] | None = None


@dataclass(frozen=True)
class LeafMaker:
    """Makes one domain's leaf: frames chosen and viewed, text encoded, products listed.

    Fields as in `pipeline.train_batches`; T is the number of frames of this domain.
    """

    domain: str
    T: int
    view: TrainView | EvalView
    text_length: int
    tokenizer: PreTrainedTokenizerFast
    max_products: int
    short_clips: str
    augment: TextAugment | None = None

    def __call__(
        self,
        candidates: Sequence[Iterable[Example]],
        on_fault: Callable[[int, BadItem], None] | None = None,
    ) -> dict[str, np.ndarray]:
        """Makes the leaf.

        Args:
          candidates: for each place of the batch the examples that may stand there: the first whose images decode
            does. None where the domain is missing.
          on_fault: called with the place and the fault of each example that is passed over; without it the first
            fault is raised.

        Raises:
          BadItem: an image does not decode.
          ValueError: a product id needs more than 32 bits.
        """
        B, size = len(candidates), self.view.size
        frames = np.empty((B, self.T, size, size, 3), np.uint8)
        frame_mask = np.zeros((B, self.T), bool)
        products = np.full((B, self.max_products), NO_PRODUCT, np.int32)
        present = np.zeros(B, bool)
        texts = [""] * B
        for b, own in enumerate(candidates):
            count = 0
            for example in own:
                try:
                    count = self._view(example, frames[b])
                except BadItem as error:
                    if on_fault is None:
                        raise
                    on_fault(b, error)
                    continue
                kept = kept_products(example.item.product_ids, example.product, self.max_products)
                products[b, : len(kept)] = kept
                present[b], texts[b] = True, self._text(example)
                break
            frame_mask[b, :count] = True
            frames[b, count:] = 0
        return {
            "frames": frames,
            "frame_mask": frame_mask,
            "text": encode(self.tokenizer, texts, self.text_length),
            "present": present,
            "products": products,
        }

    def _view(self, example: Example, out: np.ndarray) -> int:
        """Brings the chosen frames of an item through the view to the start of u8[T, H, W, 3]; how many they are."""
        item, rng = example.item, example.rng
        positions = choose(len(item.frames), self.T, domain=self.domain, short_clips=self.short_clips, rng=rng)
        if not len(positions):
            return 0
        # A frame that repeats is decoded once: the view is the same for the whole clip.
        taken = list(dict.fromkeys(positions.tolist()))
        source = np.searchsorted(taken, positions)
        try:
            self.view([item.frames[position] for position in taken], rng, out[: len(taken)])
        except ValueError as error:
            place = f", {example.place()}" if example.place else ""
            raise BadItem(f"{self.domain} item {item.item_id}{place}: {error}") from error
        for t in reversed(range(len(positions))):  # no frame is overwritten before it has been copied
            if source[t] != t:
                out[t] = out[source[t]]
        return len(positions)

    def _text(self, example: Example) -> str:
        text = example.item.text
        return self.augment(text, example.rng) if self.augment and example.rng else text


def kept_products(product_ids: Sequence[int], drawn: int | None, limit: int) -> list[int]:
    """The `limit` smallest product ids, sorted, the drawn one always among them.

    (3, 5, 8, 9) with limit 2 gives [3, 5]; with 9 drawn it gives [3, 9].

    Raises:
      ValueError: an id is negative (−1 means none in batches) or needs more than 32 bits.
    """
    kept = sorted(product_ids)[:limit]
    if drawn is not None and drawn not in kept:
        kept = [*kept[: limit - 1], drawn]
    return [checked_id(product) for product in kept]


def checked_id(product: int) -> int:
    """The id itself, or a ValueError where a batch's i32 ids cannot hold it."""
    if not 0 <= product <= LARGEST_ID:
        raise ValueError(f"product id {product} is outside 0 … {LARGEST_ID}, which batches can hold; renumber it")
    return product

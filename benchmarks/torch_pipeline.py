"""The input pipeline of the authors' code in PyTorch, for comparison: DataLoader, Pillow, crop, flip, normalization."""

import contextlib
import io
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import PreTrainedTokenizerFast

from cope_jax.data.frames import choose_frames
from cope_jax.data.images import random_box
from cope_jax.data.records import Item
from cope_jax.data.tokenizer import encode
from data_prep.common.domains import ROPE_DOMAINS

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in the authors' code


class TorchDataset(Dataset):
    """Examples for PyTorch's DataLoader: frames and text of a random item of each domain of a product."""

    def __init__(
        self,
        products: Sequence[Mapping[str, Sequence[Item]]],
        *,
        frames: Mapping[str, int],
        size: int,
        text_length: int,
        tokenizer: PreTrainedTokenizerFast,
        normalized: bool,
    ):
        """Initializes the data set.

        Args:
            products: The items of each product in each domain, in memory.
            frames: Frames per item of each domain.
            size: Side of the images in pixels.
            text_length: Tokens per text.
            tokenizer: Tokenizer of the texts.
            normalized: Return normalized float32[T, 3, H, W] tensors, as the authors' code, instead of uint8.
        """
        self.products, self.frames, self.size, self.text_length = products, frames, size, text_length
        self.tokenizer, self.normalized = tokenizer, normalized

    def __len__(self) -> int:
        return len(self.products)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {domain: self.example(random.choice(items), domain) for domain, items in self.products[index].items()}

    def example(self, item: Item, domain: str) -> dict[str, Any]:
        """Returns the frames and tokens of an item."""
        T = self.frames[domain]
        positions = choose_frames(len(item.frames), T, kind=ROPE_DOMAINS[domain], short_clips="repeat", rng=None)
        frames = augment([item.frames[position] for position in positions], self.size)
        return {
            "frames": normalize(frames) if self.normalized else np.stack(frames),
            "text": encode(self.tokenizer, [item.text], self.text_length)[0],
        }


@contextlib.contextmanager
def batches(dataset: TorchDataset, batch_size: int, workers: int) -> Iterator[Iterator[Any]]:
    """Opens endless batches of random products, made by worker processes."""
    endless = RandomSampler(dataset, replacement=True, num_samples=1 << 30)
    with mock.patch.dict(os.environ, TOKENIZERS_PARALLELISM="false"):  # the tokenizer's threads do not survive the fork
        yield iter(DataLoader(dataset, batch_size, sampler=endless, num_workers=workers))


def augment(encoded: Sequence[bytes], size: int) -> list[np.ndarray]:
    """Decodes, crops, resizes and, half of the time, flips the frames of a clip, with Pillow."""
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]
    width, height = images[0].size
    rng = np.random.default_rng(random.getrandbits(32))
    top, left, h, w = random_box(height, width, scale=(0.64, 1.0), ratio=(3 / 4, 4 / 3), rng=rng)
    left, top, right, bottom = left * width, top * height, (left + w) * width, (top + h) * height
    box = round(left), round(top), round(right), round(bottom)
    images = [image.crop(box).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    if random.random() < 0.5:
        images = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    return [np.array(image) for image in images]


def normalize(frames: Sequence[np.ndarray]) -> torch.Tensor:
    """Converts uint8[H, W, 3] frames to normalized float32[T, 3, H, W], like torchvision's ToTensor and Normalize."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    tensors = [torch.from_numpy(frame).permute(2, 0, 1).contiguous().float().div(255) for frame in frames]
    return torch.stack([tensor.sub_(mean).div_(deviation) for tensor in tensors])

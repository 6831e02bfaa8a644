"""Trains a model on your own catalog, with any domains.

    ./run.sh train --config=configs/catalog.py:data/shop --workdir=runs/shop

The path after the colon is the data folder that `./run.sh build` wrote. Training starts from SigLIP 2 if its weights
are in the cache of the Hugging Face hub or can be downloaded, and otherwise, or with `:data/shop,scratch`, from scratch
with a small model. The domains, the sizes of images, clips, texts and batches, the number of steps and the pairs of
views follow from a sample of the training split and are printed with the reason. Flags of single fields take
precedence.
"""

import io
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs import demo
from cope_jax.data.records import InvalidItemError, ItemRecords, Product, Records, open_records
from cope_jax.parallel.local_devices import computes_on_cpu
from data_prep.common.domains import domain_pairs, find_data_set, read_domains
from data_prep.common.hub import is_available

WEIGHTS = "google/siglip2-base-patch16-224"
SCRATCH = ",scratch"  # at the end of the argument
SAMPLED_PRODUCTS, SAMPLED_ITEMS = 1000, 200  # the latter in each domain
IMAGE_SIZE, PATCH = 64, 16  # pixels
BATCH_SIZE = 64
EXAMPLES, EPOCHS = 26_880, 10  # products to learn from: as many as in the demo, or all of them ten times
SEVERAL = TEXTS = 0.1  # share of products with two items, or of items with texts, that is enough to learn from


@dataclass(frozen=True)
class Statistics:
    """Statistics of a sample of a domain's items and products."""

    kind: str  # "image" or "clip"
    frames: int  # median number of frames per item
    side: int  # median of the shorter side of images, in pixels
    texts: float  # share of items with a text
    tokens: int  # 95th percentile of the estimated number of tokens of a text
    several: float  # share of products with an item that have two or more


def get_config(data_dir: str = "data") -> ConfigDict:
    """Returns the model of the demo, or settings for SigLIP 2, with the domains of a data set and sizes that fit it."""
    fields = demo.small_model().to_dict()
    if not data_dir.endswith(SCRATCH):
        choose_weights(fields)
    data_dir = data_dir.removesuffix(SCRATCH)
    fields["data"]["data_dir"] = data_dir
    folder = find_data_set(Path(data_dir))
    if (folder / "product").is_dir():  # a missing data set is reported when the run opens it
        records = open_records(folder, fields["data"]["train_split"])
        fit(fields, describe(records), len(records.products))
    else:
        fields["data"]["domains"] = read_domains(folder)
    return ConfigDict(fields).lock()


def choose_weights(fields: dict[str, Any]) -> None:
    """Changes the settings to those for fine-tuning WEIGHTS if they are available, and prints the choice."""
    if not is_available(WEIGHTS, "model.safetensors"):
        print(f"training from scratch: {WEIGHTS} is not in the cache, and the Hugging Face hub does not answer")
        return
    cpu = computes_on_cpu()
    method, rate = ("frozen", 1e-3) if cpu else ("lora", 1e-4)
    print(f"starting from {WEIGHTS} with config.finetune.method={method} on {'CPUs' if cpu else 'accelerators'}")
    fields["model"] |= {"init_from": WEIGHTS, "dtype": "float32" if cpu else "bfloat16", "remat": "block"}
    fields["model"]["scan_layers"] = True
    fields["finetune"]["method"], fields["optimizer"]["rate"] = method, rate


def fit(fields: dict[str, Any], domains: dict[str, Statistics], products: int) -> None:
    """Changes the fields that depend on a data set, and prints them with the reason."""
    data, losses = fields["data"], fields["losses"]["sigmoid"]
    print(f"settings for {products:,} products:")

    def report(name: str, value: object, reason: str) -> None:
        print(f"  {name} = {value}: {reason}")

    data["domains"] = {domain: own.kind for domain, own in domains.items()}
    side = min(own.side for own in domains.values())
    data["image_size"] = max(min(IMAGE_SIZE, side // PATCH * PATCH), 2 * PATCH)
    reason = f"images have {side} pixels or more, and the time per step grows with the square of their size"
    weights = fields["model"]["init_from"]  # they determine the sizes of images and texts
    if not weights:
        report("data.image_size", data["image_size"], reason)

    for section, most in (("data", 2), ("eval", 4)):
        counts = {domain: min(own.frames, most) if own.kind == "clip" else 1 for domain, own in domains.items()}
        fields[section]["frames"] = counts
        lengths = ", ".join(f"{domain} {own.frames}" for domain, own in domains.items() if own.kind == "clip")
        report(f"{section}.frames", counts, f"median frames of clips: {lengths}" if lengths else "images only")

    texts = tuple(domain for domain, own in domains.items() if own.texts >= TEXTS)
    fields["model"]["text_domains"] = texts
    report("model.text_domains", texts, ", ".join(f"{own.texts:.0%} of {name}" for name, own in domains.items()))
    tokens = max((domains[domain].tokens for domain in texts), default=0)
    data["text_length"] = min(max(-(-tokens // 8) * 8, 16), 128)
    if not weights:
        report("data.text_length", data["text_length"], f"19 of 20 texts have at most about {tokens} tokens")

    batch = fields["train"]["batch_size"] = max(min(BATCH_SIZE, 1 << (products // 2).bit_length() - 1), 8)
    report("train.batch_size", batch, f"at most {BATCH_SIZE} and half of the products, so that most negatives are new")
    examples = max(EXAMPLES, EPOCHS * products)
    steps = fields["train"]["steps"] = -(-examples // batch)
    report("train.steps", f"{steps:,}", f"{examples:,} products, each {examples / products:.0f} times")
    losses["bias"] = -float(round(math.log(batch)))  # right on average before training, see scratch.py

    several = [domain for domain, own in domains.items() if own.several >= SEVERAL]
    whole = [(a, b, 1.0) for a, b in domain_pairs(domains) if a != b] + [(domain, domain, 1.0) for domain in several]
    pairs = whole + [(f"{domain}.text", f"{domain}.vision", 0.5) for domain in texts]
    losses["pairs"] = tuple(pairs)
    shares = ", ".join(f"{own.several:.0%} in {domain}" for domain, own in domains.items())
    report("losses.sigmoid.pairs", losses["pairs"], f"products with two items or more: {shares}; texts find images")
    if pairs and not weights:
        frames = [(f"{a}.vision", f"{b}.vision", weight) for a, b, weight in whole]
        frames += [(f"{domain}.text", f"{domain}.vision", 1.0) for domain in texts]
        fields["losses"]["infonce"] |= demo.FRAME_LOSS | {"pairs": tuple(frames)}
        fields["model"]["fusion"]["kind"] = "mean"
        reason = "without pretrained weights, frames learn more slowly than texts"
        report("losses.infonce.pairs and model.fusion.kind=mean", tuple(frames), reason)
    if not pairs:
        print("  warning: there is nothing to compare: no domain has texts, or two items of a product")


def describe(records: Records) -> dict[str, Statistics]:
    """Returns the statistics of each domain of a split."""
    products = []
    for number in sample(len(records.products), SAMPLED_PRODUCTS):
        with suppress(InvalidItemError):
            products.append(records.products[number])
    return {domain: describe_domain(items, products) for domain, items in records.items.items()}


def describe_domain(records: ItemRecords, products: list[Product]) -> Statistics:
    """Returns the statistics of a domain; items and images that cannot be read are skipped."""
    frames, sides, tokens = [], [], []
    for row in sample(len(records), SAMPLED_ITEMS):
        with suppress(InvalidItemError, OSError):
            item = records[row]
            frames.append(len(item.frames))
            tokens.append(estimate_tokens(item.text))
            sides += [min(Image.open(io.BytesIO(frame)).size) for frame in item.frames[:1]]
    counts = [len(product.rows[records.domain]) for product in products]
    return Statistics(
        kind=records.kind,
        frames=max(int(np.median(frames or [1])), 1),
        side=int(np.median(sides or [IMAGE_SIZE])),
        texts=np.count_nonzero(tokens) / max(len(tokens), 1),
        tokens=int(np.quantile([count for count in tokens if count] or [0], 0.95)),
        several=sum(count > 1 for count in counts) / max(sum(count > 0 for count in counts), 1),
    )


def sample(size: int, limit: int) -> list[int]:
    """Returns up to `limit` evenly spaced numbers below `size`."""
    count = min(size, limit)
    return [i * size // count for i in range(count)]


def estimate_tokens(text: str) -> int:
    """Returns about how many tokens a text has with its two ends, given 2.5 ASCII or one other character per token."""
    ascii_characters = sum(character.isascii() for character in text)
    return math.ceil(ascii_characters / 2.5) + len(text) - ascii_characters + 2 if text else 0

"""Fields of a run's config: type and allowed values of each. Defaults and explanations are in `configs/default.py`."""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

AVERAGE_PREFIX = "average_"  # of metrics of the moving average of the parameters


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Allowed numbers: those within all given bounds, and the number `or_equal`. Never infinity or NaN."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    or_equal: float | None = None

    def allows(self, value: float) -> bool:
        """Returns whether a finite number is allowed."""
        within = self.at_least <= value <= self.at_most and self.above < value < self.below
        return within or value == self.or_equal

    def __str__(self) -> str:
        signs = {">=": self.at_least, ">": self.above, "<=": self.at_most, "<": self.below}
        words = " and ".join(f"{sign} {bound}" for sign, bound in signs.items() if math.isfinite(bound))
        return words if self.or_equal is None else f"{words} or {self.or_equal}"


class Regex:
    """Allows strings that compile as regular expressions."""

    def allows(self, value: str) -> bool:
        """Returns whether a string compiles."""
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError):
            return False
        return True

    def __str__(self) -> str:
        return "that is a regular expression"


Natural = Annotated[int, Bounds(at_least=0)]
PositiveInt = Annotated[int, Bounds(at_least=1)]
NonNegative = Annotated[float, Bounds(at_least=0)]
Positive = Annotated[float, Bounds(above=0)]
Fraction = Annotated[float, Bounds(at_least=0, at_most=1)]
PositiveFraction = Annotated[float, Bounds(above=0, at_most=1)]
FractionBelowOne = Annotated[float, Bounds(at_least=0, below=1)]
MeshAxisSize = Annotated[int, Bounds(at_least=1, or_equal=-1)]

Domain = Literal["page", "video", "live"]


@dataclass(frozen=True, kw_only=True)
class FramesConfig:
    """Number of frames chosen from each item, by domain."""

    page: PositiveInt
    video: PositiveInt
    live: PositiveInt

    def __getitem__(self, domain: str) -> int:
        return getattr(self, domain)

    @property
    def longest(self) -> int:
        """The largest number of frames."""
        return max(self.page, self.video, self.live)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Records, crops and texts."""

    data_dir: str
    train_split: str
    eval_split: str
    image_size: PositiveInt
    frames: FramesConfig
    short_clips: Literal["repeat", "mask"]
    crop_scale: tuple[PositiveFraction, PositiveFraction]
    flip: bool
    colour_jitter: Fraction
    tokenizer: str
    vocab_size: PositiveInt
    text_length: Annotated[int, Bounds(at_least=3)]  # [CLS], one token, [SEP]
    text_noise: Fraction
    max_products: PositiveInt
    max_bad_fraction: Fraction
    threads: PositiveInt


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision encoder."""

    init_from: str
    init_cut: bool
    normalisation: Literal["imagenet", "clip"]
    stem: Literal["patch", "conv"]
    patch_size: PositiveInt
    stem_widths: tuple[PositiveInt, ...]
    stem_blocks: tuple[Natural, ...]
    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    pooling: Literal["class", "mean"]
    activation: Literal["gelu", "quick_gelu"]
    cross_frame: bool
    integration_depth: Natural
    integration_heads: PositiveInt
    output_width: PositiveInt
    drop_path: FractionBelowOne


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder."""

    init_from: str
    init_cut: bool
    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    pooling: Literal["pooler", "class", "mean"]
    dropout: FractionBelowOne


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion heads; sizes are those of the transformer."""

    kind: Literal["linear", "transformer"]
    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model and how it is computed."""

    embedding: PositiveInt
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["auto", "xla", "cudnn"]
    scan_layers: bool
    remat: Literal["none", "block", "dots"]
    text_domains: tuple[Domain, ...]
    head_norm: Literal["none", "batch"]
    vision: VisionConfig
    text: TextConfig
    fusion: FusionConfig


@dataclass(frozen=True, kw_only=True)
class SigmoidConfig:
    """The sigmoid loss."""

    weight: NonNegative
    temperature: Positive
    bias: float
    page_text: NonNegative
    page_vision: NonNegative


@dataclass(frozen=True, kw_only=True)
class InfoNCEConfig:
    """The InfoNCE loss."""

    weight: NonNegative
    temperature: Positive
    smoothing: FractionBelowOne
    page_text: NonNegative
    page_vision: NonNegative


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The classification of all training products."""

    weight: NonNegative
    scale: Positive
    margin: NonNegative
    rate: PositiveFraction
    classes: Natural


@dataclass(frozen=True, kw_only=True)
class LossesConfig:
    """The terms of the loss."""

    sigmoid: SigmoidConfig
    infonce: InfoNCEConfig
    classifier: ClassifierConfig

    @property
    def active(self) -> dict[str, float]:
        """Weights of the terms whose weight is not 0."""
        terms = {"sigmoid": self.sigmoid, "infonce": self.infonce, "classifier": self.classifier}
        return {name: term.weight for name, term in terms.items() if term.weight}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedule and its parameter groups."""

    rate: Positive
    groups: tuple[tuple[Annotated[str, Regex()], NonNegative], ...]
    warmup_steps: Natural
    b1: FractionBelowOne
    b2: FractionBelowOne
    weight_decay: NonNegative
    clip_norm: NonNegative


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Batches, steps, checkpoints and evaluations during training."""

    batch_size: PositiveInt
    microbatch: Natural
    steps: PositiveInt
    log_every: PositiveInt
    checkpoint_every: PositiveInt
    keep_checkpoints: PositiveInt
    evaluate_every: Natural
    evaluate_products: PositiveInt
    best_by: Literal[
        "mean_r1",
        "mean_r5",
        "mean_r10",
        "mean_map",
        "average_mean_r1",
        "average_mean_r5",
        "average_mean_r10",
        "average_mean_map",
    ]
    average_decay: FractionBelowOne
    max_skipped: Natural
    stall_seconds: NonNegative


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes."""

    data: MeshAxisSize
    fsdp: MeshAxisSize
    tensor: MeshAxisSize


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation and few-shot classification."""

    batch_size: PositiveInt
    frames: FramesConfig
    ways: Annotated[int, Bounds(at_least=2)]
    shots: PositiveInt
    queries: PositiveInt
    episodes: Annotated[int, Bounds(at_least=10)]  # fewer give no confidence interval


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All fields of a run. `config_validation.resolve_config` makes valid ones."""

    seed: Annotated[int, Bounds(at_least=0, below=2**32)]
    data: DataConfig
    model: ModelConfig
    losses: LossesConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig
    eval: EvalConfig


def flatten(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every field of a config or of a part of it, sorted by key."""
    for field in sorted(dataclasses.fields(section), key=lambda field: field.name):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value

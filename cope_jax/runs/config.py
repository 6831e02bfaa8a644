"""Fields of a run's config: type and allowed values of each. Defaults and explanations are in `configs/default.py`."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NamedTuple

from data_prep.common.differences import flatten_keys
from data_prep.common.domains import batch_entries, domain_pairs, is_domain_name

AVERAGE_PREFIX = "average_"  # of metrics of the moving average of the parameters


class Limit(NamedTuple):
    """A restriction of the values of a field, in words and as a function. Numbers are finite in any case."""

    words: str
    allows: Callable[[Any], bool]


def is_regex(value: str) -> bool:
    """Returns whether a string is a regular expression."""
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def is_view_name(value: str) -> bool:
    """Returns whether a string names a view: a domain, or its texts or frames alone."""
    domain, dot, modality = value.partition(".")
    return is_domain_name(domain) and (not dot or modality in ("text", "vision"))


def between(low: int, high: int) -> Limit:
    """Returns the limit of a size: a mistake in a `config.json` must not take all memory."""
    return Limit(f">= {low} and <= {high}", lambda x: low <= x <= high)


Natural = Annotated[int, Limit(">= 0", lambda x: x >= 0)]
PositiveInt = Annotated[int, Limit(">= 1", lambda x: x >= 1)]
Width = Annotated[int, between(1, 65_536)]
Depth = Annotated[int, between(1, 512)]
BatchSize = Annotated[int, between(1, 1_048_576)]
FrameCount = Annotated[int, between(1, 4_096)]
Seed = Annotated[int, Limit(">= 0 and < 2**32", lambda x: 0 <= x < 2**32)]
MeshAxisSize = Annotated[int, Limit(">= 1, or -1", lambda x: x >= 1 or x == -1)]
NonNegative = Annotated[float, Limit(">= 0", lambda x: x >= 0)]
Positive = Annotated[float, Limit("> 0", lambda x: x > 0)]
Fraction = Annotated[float, Limit(">= 0 and <= 1", lambda x: 0 <= x <= 1)]
PositiveFraction = Annotated[float, Limit("> 0 and <= 1", lambda x: 0 < x <= 1)]
FractionBelowOne = Annotated[float, Limit(">= 0 and < 1", lambda x: 0 <= x < 1)]
Regex = Annotated[str, Limit("that is a regular expression", is_regex)]
DomainName = Annotated[str, Limit("that names a domain, such as 'page'", is_domain_name)]
ViewName = Annotated[str, Limit("that names a view, such as 'page', 'page.text' or 'page.vision'", is_view_name)]
Template = Annotated[str, Limit("that has {} once, for the text", lambda x: x.count("{}") == 1)]
ViewPairs = tuple[tuple[ViewName, ViewName, Positive], ...]  # (view, view, weight)
FrameCounts = dict[DomainName, FrameCount]  # number of frames chosen from each item, by domain
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
MeanMetric = Literal["mean_r1", "mean_r5", "mean_r10", "mean_map"]
AverageMetric = Literal["average_mean_r1", "average_mean_r5", "average_mean_r10", "average_mean_map"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    data_dir: str
    train_split: str
    eval_split: str
    domains: dict[DomainName, Literal["image", "clip"]]
    image_size: Annotated[int, between(1, 8_192)]
    resize: Literal["stretch", "crop", "zoom"]
    frames: FrameCounts
    short_clips: Literal["repeat", "mask"]
    frame_choice: Literal["random", "center"]
    crop_scale: tuple[PositiveFraction, PositiveFraction]
    flip: bool
    colour_jitter: Fraction
    tokenizer: str
    lowercase: bool
    vocab_size: Annotated[int, between(1, 10_000_000)]
    text_length: Annotated[int, between(3, 65_536)]  # [CLS], one token, [SEP]
    modality_dropout: tuple[tuple[DomainName, Fraction, Fraction], ...]
    text_noise: Fraction
    text_templates: tuple[tuple[DomainName, Template], ...]
    clean_texts: bool
    max_products: Annotated[int, between(1, 65_536)]
    max_bad_fraction: Fraction
    hard_batches: FractionBelowOne
    hard_every: PositiveInt
    threads: Annotated[int, between(1, 4_096)]
    worker_processes: Annotated[int, between(0, 1_024)]

    def template(self, domain: str) -> str:
        """Template of a domain's texts, "{}" by default."""
        return dict(self.text_templates).get(domain, "{}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    init_from: str
    init_cut: bool
    normalisation: Literal["imagenet", "clip", "siglip"]
    stem: Literal["patch", "conv"]
    patch_size: PositiveInt
    family: Literal["clip", "siglip"]
    stem_widths: tuple[Width, ...]
    stem_blocks: tuple[Annotated[int, between(0, 512)], ...]
    width: Width
    depth: Depth
    heads: PositiveInt
    mlp_width: Annotated[int, between(0, 262_144)]
    pooling: Literal["class", "mean", "attention"]
    activation: Activation
    across_frames: Literal["xclip", "gated"]
    cross_frame: bool
    integration_depth: Annotated[int, between(0, 512)]
    integration_heads: PositiveInt
    output_width: Width
    broadcast_single_frame: bool
    drop_path: FractionBelowOne


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    init_from: str
    init_cut: bool
    family: Literal["bert", "clip", "siglip"]
    width: Width
    depth: Depth
    heads: PositiveInt
    mlp_width: Annotated[int, between(0, 262_144)]
    activation: Activation
    output_width: Annotated[int, between(0, 65_536)]
    pooling: Literal["pooler", "class", "mean", "end", "last"]
    dropout: FractionBelowOne
    attention_dropout: FractionBelowOne


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    kind: Literal["linear", "mean", "transformer", "aligned"]
    width: Width
    depth: Depth
    heads: PositiveInt


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    init_from: str
    embedding: Width
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["auto", "xla", "cudnn"]
    scan_layers: bool
    remat: Literal["none", "block", "narrow", "dots"]
    text_domains: tuple[DomainName, ...]
    head_norm: Literal["none", "batch"]
    principal_axes: bool
    vision: VisionConfig
    text: TextConfig
    fusion: FusionConfig


@dataclass(frozen=True, kw_only=True)
class SigmoidConfig:
    weight: NonNegative
    temperature: Positive
    bias: float
    pairs: ViewPairs
    within: tuple[tuple[ViewName, Positive], ...]


@dataclass(frozen=True, kw_only=True)
class InfoNCEConfig:
    weight: NonNegative
    temperature: Positive
    smoothing: FractionBelowOne
    pairs: ViewPairs


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    weight: NonNegative
    scale: Positive
    margin: NonNegative
    rate: PositiveFraction
    classes: Natural


@dataclass(frozen=True, kw_only=True)
class LossesConfig:
    nested: tuple[Width, ...]
    precision: Literal["highest", "bfloat16"]
    sigmoid: SigmoidConfig
    infonce: InfoNCEConfig
    classifier: ClassifierConfig

    @property
    def active(self) -> dict[str, float]:
        """Weights of the terms whose weight is not 0."""
        terms = {"sigmoid": self.sigmoid, "infonce": self.infonce, "classifier": self.classifier}
        return {name: term.weight for name, term in terms.items() if term.weight}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    method: Literal["full", "frozen", "lora"]
    layer_decay: PositiveFraction
    rank: Annotated[int, between(1, 4_096)]
    alpha: Positive
    targets: Regex
    distill: NonNegative


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    rate: Positive
    groups: tuple[tuple[Regex, NonNegative], ...]
    warmup_steps: Natural
    cosine_steps: Natural
    b1: FractionBelowOne
    b2: FractionBelowOne
    weight_decay: NonNegative
    decayed: Regex
    clip_norm: NonNegative
    clipped: Regex


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    batch_size: BatchSize
    microbatch: Natural
    steps: PositiveInt
    log_every: PositiveInt
    checkpoint_every: PositiveInt
    keep_checkpoints: PositiveInt
    evaluate_every: Natural
    evaluate_products: PositiveInt
    best_by: Literal[MeanMetric, AverageMetric]
    average_decay: FractionBelowOne
    shard_optimizer: bool
    wandb: str
    max_skipped: Natural
    stall_seconds: NonNegative


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    data: MeshAxisSize
    fsdp: MeshAxisSize
    tensor: MeshAxisSize


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    batch_size: BatchSize
    frames: FrameCounts
    ways: Annotated[int, Limit(">= 2", lambda x: x >= 2)]
    shots: PositiveInt
    queries: PositiveInt
    episodes: Annotated[int, between(10, 1_000_000)]  # fewer give no confidence interval


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All fields of a run. `config_validation.resolve_config` makes valid ones."""

    seed: Seed
    data: DataConfig
    model: ModelConfig
    losses: LossesConfig
    finetune: FinetuneConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig
    eval: EvalConfig

    def view_pairs(self, term: SigmoidConfig | InfoNCEConfig) -> ViewPairs:
        """Returns the pairs of views of a term: by default all pairs of domains, or a single domain with itself."""
        return term.pairs or tuple((a, b, 1.0) for a, b in domain_pairs(self.data.domains))

    @property
    def batch_entries(self) -> dict[str, str]:
        """Entries of training batches and their domains, see `batch_entries`: views paired with themselves need two."""
        terms = [term for term in (self.losses.sigmoid, self.losses.infonce) if term.weight]
        paired = {a.partition(".")[0] for term in terms for a, b, _ in self.view_pairs(term) if a == b}
        return batch_entries(self.data.domains, paired)

    @property
    def groups(self) -> tuple[tuple[str, float], ...]:
        """Parameter groups of the optimizer: those of config.finetune.method, then those of config.optimizer."""
        frozen = ((r"^model/(vision|text)/", 0.0),)
        rules = {"full": (), "frozen": frozen, "lora": ((r"/lora_[ab]$", 1.0), *frozen)}
        return (*rules[self.finetune.method], *self.optimizer.groups)


def flatten(config: RunConfig) -> dict[str, Any]:
    """Returns all fields by dotted key: {"data.data_dir": "data", …}, sorted."""
    return dict(sorted(flatten_keys(asdict(config)).items()))

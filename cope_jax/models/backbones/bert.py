"""BERT (arXiv 1810.04805) and models of its architecture, such as RoBERTa-wwm-ext and RBT3: the text encoder."""

from collections.abc import Collection

from cope_jax.models.backbones.layouts import COPY, first_rows
from cope_jax.models.backbones.spec import (
    Config,
    EncoderSpec,
    Family,
    Requirement,
    Source,
    Sources,
    attention,
    linear,
    norm,
    prefix_of,
    unsupported_sizes,
)


def block(path: str, tensor: str) -> Sources:
    """Sources of BERT's post-norm block."""
    inputs = [f"{tensor}.attention.self.{part}" for part in ("query", "key", "value")]
    return {
        **attention(f"{path}/attention", inputs, f"{tensor}.attention.output.dense"),
        **norm(f"{path}/norm1", f"{tensor}.attention.output.LayerNorm"),
        **linear(f"{path}/mlp/up", f"{tensor}.intermediate.dense"),
        **linear(f"{path}/mlp/down", f"{tensor}.output.dense"),
        **norm(f"{path}/norm2", f"{tensor}.output.LayerNorm"),
    }


def text_encoder(config: Config, prefix: str, ignored: tuple[str, ...]) -> EncoderSpec:
    """A BERT whose tensors have a prefix; `config` is the text config."""
    embeddings, positions = f"{prefix}embeddings", first_rows(config.max_position_embeddings)
    activation = config.hidden_act
    return EncoderSpec(
        sources={
            "words/embedding": Source((f"{embeddings}.word_embeddings.weight",), COPY),
            "position": Source((f"{embeddings}.position_embeddings.weight",), positions),
            "segment": Source((f"{embeddings}.token_type_embeddings.weight",), COPY),
            **norm("norm", f"{embeddings}.LayerNorm"),
            **block("blocks", f"{prefix}encoder.layer.{{}}"),
            **linear("pooler", f"{prefix}pooler.dense"),
        },
        depths={"blocks": config.num_hidden_layers},
        requirements=(
            Requirement("width", "hidden_size", config.hidden_size),
            Requirement("heads", "num_attention_heads", config.num_attention_heads),
        ),
        unsupported=(
            *unsupported_sizes(config, epsilon=1e-12),
            *([f"its hidden_act is {activation!r}, but only 'gelu' is supported"] if activation != "gelu" else []),
        ),
        ignored=(*ignored, r"embeddings\.position_ids$"),
        optional=(r"^pooler/",),
    )


def bert(config: Config, names: Collection[str]) -> EncoderSpec:
    """BertModel, or a model with a head that contains one."""
    return text_encoder(config, prefix_of(names, "bert.", "embeddings.word_embeddings.weight"), (r"^cls\.",))


FAMILY = Family(text={"bert": bert})

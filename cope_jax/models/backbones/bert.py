"""BERT (arXiv 1810.04805) and models of its architecture, such as RoBERTa-wwm-ext and RBT3: the text encoder."""

from collections.abc import Collection

from cope_jax.models.backbones import spec
from cope_jax.models.backbones.layouts import LINEAR, first_rows
from cope_jax.models.backbones.spec import Config, EncoderSpec, Source, Sources


def block(path: str, tensor: str) -> Sources:
    """Sources of BERT's post-norm block."""
    inputs = [f"{tensor}.attention.self.{part}" for part in ("query", "key", "value")]
    return {
        **spec.attention(f"{path}/attention", inputs, f"{tensor}.attention.output.dense"),
        **spec.norm(f"{path}/norm1", f"{tensor}.attention.output.LayerNorm"),
        **spec.linear(f"{path}/mlp/up", f"{tensor}.intermediate.dense"),
        **spec.linear(f"{path}/mlp/down", f"{tensor}.output.dense"),
        **spec.norm(f"{path}/norm2", f"{tensor}.output.LayerNorm"),
    }


def bert(config: Config, names: Collection[str]) -> EncoderSpec:
    """BertModel or ChineseCLIPTextModel, or a model that contains one (for ChineseCLIPModel, arXiv 2211.01335).

    The projection of ChineseCLIPModel is used if the encoder has one.
    """
    text = getattr(config, "text_config", config)
    prefix = spec.prefix_of(names, "embeddings.word_embeddings.weight")
    embeddings = f"{prefix}embeddings"
    projection = f"{prefix.removesuffix('text_model.')}text_projection.weight"
    project = {"project/kernel": Source((projection,), LINEAR)} if projection in names else {}
    unsupported = spec.unsupported_sizes(text, epsilon=1e-12)
    if text.hidden_act != "gelu":
        unsupported += (f"its hidden_act is {text.hidden_act!r}, but only 'gelu' is supported",)
    return EncoderSpec(
        sources={
            "words/embedding": Source((f"{embeddings}.word_embeddings.weight",), first_rows(text.vocab_size)),
            "position": Source((f"{embeddings}.position_embeddings.weight",), first_rows(text.max_position_embeddings)),
            "segment": Source((f"{embeddings}.token_type_embeddings.weight",), first_rows(text.type_vocab_size)),
            **spec.norm("norm", f"{embeddings}.LayerNorm"),
            **block("blocks", f"{prefix}encoder.layer.{{}}"),
            **spec.linear("pooler", f"{prefix}pooler.dense"),
            **project,
        },
        depths={"blocks": text.num_hidden_layers},
        requirements={
            "family": ("family's", "bert"),
            "width": ("hidden_size", text.hidden_size),
            "heads": ("num_attention_heads", text.num_attention_heads),
        },
        own=(spec.own_tensors(prefix, "embeddings|encoder|pooler"),),
        unsupported=unsupported,
        optional=(r"^pooler/",),
        defaults={
            "pooling": "class" if text is not config else "pooler",
            "mlp_width": 0,
            "activation": "gelu",
            "output_width": config.projection_dim if project else 0,
            "max_length": 52 if text is not config else 32,  # 52 as in Chinese-CLIP's training
        },
    )

"""Chinese-CLIP (arXiv 2211.01335): CLIP's vision encoder, and a BERT without pooler as text encoder."""

from collections.abc import Collection

from cope_jax.models.backbones import bert, clip
from cope_jax.models.backbones.spec import Config, EncoderSpec, Family


def text(config: Config, names: Collection[str]) -> EncoderSpec:
    """ChineseCLIPModel: its text encoder."""
    ignored = (r"^vision_model\.", r"^(visual|text)_projection\.", r"^logit_scale$")
    return bert.text_encoder(config.text_config, "text_model.", ignored)


FAMILY = Family(vision={"chinese_clip": clip.clip, "chinese_clip_vision_model": clip.clip}, text={"chinese_clip": text})

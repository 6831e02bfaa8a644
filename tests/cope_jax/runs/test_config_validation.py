"""Validation of configs: every invalid field is reported with its key, and nothing else is raised."""

import dataclasses
import importlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import cope_rope, default
from cope_jax.runs.config import DomainName, Regex, RunConfig, Template, ViewName, flatten
from cope_jax.runs.config_validation import RELATIONS, replace_fields, resolve_config
from data_prep.common.differences import flatten_keys

EXPERIMENTS = sorted(path.stem for path in (Path(__file__).parents[3] / "configs").glob("[a-z]*.py"))
DEFAULT = resolve_config(default.get_config())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_valid_and_locked(name):
    fields = importlib.import_module(f"configs.{name}").get_config()
    with pytest.raises(AttributeError, match="batch_size"):
        fields.train.batch_sise = 3
    config = resolve_config(fields)
    assert dataclasses.asdict(config) == fields.to_dict()
    assert resolve_config(json.loads(fields.to_json())) == config


def test_a_resolved_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.train.steps = 3


def test_all_problems_are_reported_together():
    changes = {
        "data.image_size": 200,
        "data.short_clips": "loop",
        "data.text_noise": 1.5,
        "model.vision.heads": 7,
        "optimizer.warmup_steps": 60_000,
        "train.batch_size": 0,
    }
    with pytest.raises(ValueError, match=r"^invalid config:\n") as caught:
        replace_fields(DEFAULT, changes)
    assert str(caught.value).splitlines()[1:] == [
        "  config.data.short_clips is 'loop'; expected one of 'repeat', 'mask'",
        "  config.data.text_noise is 1.5; expected a number >= 0 and <= 1",
        "  config.train.batch_size is 0; expected an integer >= 1 and <= 1048576",
        "  config.data.image_size is 200; expected a multiple of config.model.vision.patch_size (16)",
        "  config.model.vision.width is 768; expected a multiple of config.model.vision.heads (7)",
        "  config.optimizer.warmup_steps is 60000; expected less than config.train.steps (50000)",
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "config.seed is -1; expected an integer >= 0 and < 2**32"),
        ("data.threads", -4, "config.data.threads is -4; expected an integer >= 1"),
        ("data.frames.live", 0, "config.data.frames.live is 0; expected an integer >= 1"),
        ("data.frames", 8, "config.data.frames is 8; expected a section with an integer >= 1"),
        ("data.crop_scale", (0.0, 1.0), "config.data.crop_scale[0] is 0.0; expected a number > 0 and <= 1"),
        ("data.crop_scale", (0.9, 0.3), "config.data.crop_scale is (0.9, 0.3); expected (low, high) with low <= high"),
        (
            "data.crop_scale",
            (0.5,),
            "config.data.crop_scale is (0.5,); expected (a number > 0 and <= 1, a number > 0 and <= 1)",
        ),
        ("data.text_length", 2, "config.data.text_length is 2; expected an integer >= 3"),
        ("model.embedding", 10**12, "config.model.embedding is 1000000000000; expected an integer >= 1 and <= 65536"),
        ("data.image_size", "x" * 10**6, f"config.data.image_size is '{'x' * 99}; expected an integer"),
        ("data.flip", 1, "config.data.flip is 1; expected True or False"),
        ("data.data_dir", None, "config.data.data_dir is None; expected a string"),
        ("model.text_domains", ("page", "Shop"), "text_domains[1] is 'Shop'; expected a string that names a domain"),
        (
            "model.text_domains",
            ("page", "shop"),
            "text_domains is ('page', 'shop'); expected those of config.data.domains, page, video, live",
        ),
        (
            "data.domains",
            {"page": "image", "live": "clip"},
            "config.eval.frames has the domains page, video, live; expected those of config.data.domains, page, live",
        ),
        ("data.domains", {"page": "photo"}, "config.data.domains.page is 'photo'; expected one of 'image', 'clip'"),
        ("data.text_templates", (("page", "photo"),), "[0][1] is 'photo'; expected a string that has {} once"),
        ("data.text_templates", (("shop", "a {}"),), "expected those of config.data.domains, page, video, live, each"),
        ("data.text_templates", (("page", "a {}"), ("page", "{}")), "each at most once"),
        ("data.domains", {}, "config.data.domains is {}; expected a section with one of 'image', 'clip' for each"),
        ("model.vision.patch_size", 0, "config.model.vision.patch_size is 0; expected an integer >= 1"),
        ("model.vision.stem_widths", (0, -1), "config.model.vision.stem_widths[1] is -1; expected an integer >= 1"),
        ("model.vision.stem_blocks", (-1,), "config.model.vision.stem_blocks[0] is -1; expected an integer >= 0"),
        ("model.vision.stem_widths", 64, "stem_widths is 64; expected a tuple, each entry an integer >= 1"),
        ("model.text.dropout", 1.0, "config.model.text.dropout is 1.0; expected a number >= 0 and < 1"),
        ("losses.infonce.smoothing", 1.0, "smoothing is 1.0; expected a number >= 0 and < 1"),
        ("losses.classifier.rate", 1.5, "config.losses.classifier.rate is 1.5; expected a number > 0 and <= 1"),
        ("optimizer.rate", math.nan, "config.optimizer.rate is nan; expected a number > 0"),
        ("optimizer.rate", math.inf, "config.optimizer.rate is inf; expected a number > 0"),
        ("optimizer.b1", 1.0, "config.optimizer.b1 is 1.0; expected a number >= 0 and < 1"),
        ("optimizer.b1", -0.5, "config.optimizer.b1 is -0.5; expected a number >= 0 and < 1"),
        ("optimizer.b2", 1.5, "config.optimizer.b2 is 1.5; expected a number >= 0 and < 1"),
        ("optimizer.groups", (("(", 1.0),), "groups[0][0] is '('; expected a string that is a regular expression"),
        ("optimizer.groups", (("text", -1.0),), "config.optimizer.groups[0][1] is -1.0; expected a number >= 0"),
        ("train.steps", "10", "config.train.steps is '10'; expected an integer >= 1"),
        ("train.batch_sise", 10, "config.train.batch_sise is unknown; expected one of batch_size, microbatch, "),
        ("mesh.fsdp", 0, "config.mesh.fsdp is 0; expected an integer >= 1, or -1"),
        ("eval.ways", 1, "config.eval.ways is 1; expected an integer >= 2"),
        # Fields that do not fit each other.
        ("model.fusion.heads", 5, "model.fusion.width is 256; expected a multiple of config.model.fusion.heads (5)"),
        ("model.attention", "cudnn", "config.model.dtype is 'float32'; expected 'bfloat16'"),
        ("model.text.init_cut", True, "init_cut is True; expected False because config.model.text.init_from is ''"),
        (
            "model.text.init_from",
            "hfl/rbt3",
            "config.data.tokenizer is ''; expected the tokenizer of config.model.text",
        ),
        (
            "losses.sigmoid.weight",
            0.0,
            "losses.sigmoid.weight is 0.0; expected a number > 0 because config.losses",
        ),
        ("model.vision.family", "siglip", "config.model.vision.pooling is 'class'; expected 'attention' or 'mean'"),
        ("model.vision.family", "siglip", "config.model.vision.across_frames is 'xclip'; expected 'gated' because"),
        (
            "model.text.family",
            "siglip",
            "model.text.pooling is 'pooler'; expected 'class' or 'mean' or 'end' or 'last' because",
        ),
        ("model.text.family", "clip", "config.model.text.dropout is 0.1; expected 0 because config.model.text.family"),
        ("model.text.mlp_width", 64, "config.model.text.mlp_width is 64; expected 0 because config.model.text.family"),
        ("train.microbatch", 48, "config.train.batch_size is 128; expected a multiple of config.train.microbatch (48)"),
        ("train.best_by", "average_mean_r1", "average_decay is 0.0; expected a number > 0 because config.train.best"),
    ],
)
def test_a_problem_names_key_value_and_what_is_expected(key, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace_fields(DEFAULT, {key: value})


def test_missing_fields_and_sections_are_reported():
    fields = default.get_config().to_dict()
    del fields["model"], fields["train"]["steps"]
    with pytest.raises(ValueError, match="invalid config") as caught:
        resolve_config(fields)
    assert str(caught.value).splitlines()[1:] == [
        "  config.model is missing; expected a section with init_from, embedding, dtype, attention, scan_layers, "
        "remat, text_domains, head_norm, principal_axes, vision, text, fusion",
        "  config.train.steps is missing; expected an integer >= 1",
    ]
    with pytest.raises(ValueError, match=r"config is \[\]; expected a section with seed, data"):
        resolve_config([])


def test_relations_name_existing_fields():
    assert {key for relation in RELATIONS for key in relation.keys} <= flatten(DEFAULT).keys()


def test_a_conv_stem_determines_its_patch_size():
    conv = replace_fields(DEFAULT, {"model.vision.stem": "conv"})
    with pytest.raises(ValueError, match=r"patch_size is 16; expected 4·2\^\(stages(.|\n)*expected as many entries"):
        replace_fields(conv, {"model.vision.stem_widths": (8, 16)})
    with pytest.raises(ValueError, match=r"stem_widths is \(\); expected an entry for each stage"):
        replace_fields(conv, {"model.vision.stem_widths": ()})


def test_terms_and_microbatches_must_fit_the_model():
    config = replace_fields(DEFAULT, {"losses.infonce.weight": 1.0, "train.microbatch": 32})
    with pytest.raises(ValueError, match=r"infonce.pairs has the views page.text; expected(.|\n)*head_norm is 'batch'"):
        replace_fields(config, {"model.text_domains": ("video",), "model.head_norm": "batch"})


def test_pairs_of_views_fit_the_domains():
    changes = {"data.domains": {"shop": "image"}, "data.frames": {"shop": 1}, "eval.frames": {"shop": 2}}
    config = replace_fields(DEFAULT, changes | {"model.text_domains": ("shop",)})
    assert (config.data.domains, config.eval.frames) == ({"shop": "image"}, {"shop": 2})
    with pytest.raises(ValueError, match=r"sigmoid.pairs has the views page.vision; expected those of .*domains, shop"):
        replace_fields(config, {"losses.sigmoid.pairs": (("shop", "page.vision", 0.5),)})
    with pytest.raises(ValueError, match=r"sigmoid.pairs is .*; expected each pair once"):
        replace_fields(config, {"losses.sigmoid.pairs": (("shop", "shop.text", 1), ("shop.text", "shop", 2))})
    with pytest.raises(ValueError, match=r"pairs\[0\]\[1\] is 'shop.image'; expected a string that names a view"):
        replace_fields(config, {"losses.sigmoid.pairs": (("shop", "shop.image", 1),)})
    with pytest.raises(ValueError, match=r"sigmoid.within has the views page; expected those of .*domains, shop"):
        replace_fields(config, {"losses.sigmoid.within": (("page", 0.5),)})
    with pytest.raises(ValueError, match=r"sigmoid.within is .*; expected each view once"):
        replace_fields(config, {"losses.sigmoid.within": (("shop", 0.5), ("shop", 1.0))})
    with pytest.raises(ValueError, match=r"modality_dropout is .*domains, shop, each at most once"):
        replace_fields(config, {"data.modality_dropout": (("page", 0.1, 0.1),)})
    with pytest.raises(ValueError, match=r"modality_dropout has .*; expected probabilities that add up to at most 1"):
        replace_fields(config, {"data.modality_dropout": (("shop", 0.6, 0.5),)})
    with pytest.raises(ValueError, match=r"modality_dropout has the domains shop; expected .*text_domains \(\)"):
        replace_fields(config, {"data.modality_dropout": (("shop", 0.1, 0.1),), "model.text_domains": ()})
    with pytest.raises(ValueError, match=r"nested is \(128,\); expected lengths less than config.model.embedding"):
        replace_fields(config, {"losses.nested": (128,)})


def test_an_initialized_text_encoder_needs_texts():
    config = resolve_config(cope_rope.get_config())
    with pytest.raises(
        ValueError, match=r"text_domains is \(\); expected at least one domain because .*text.init_from"
    ):
        replace_fields(config, {"model.text_domains": (), "losses.infonce.pairs": ()})


def valid_values(hint):
    """Returns a strategy for valid values of a field."""
    if get_origin(hint) is Annotated:
        base, limit = get_args(hint)
        names = ["page", "video", "live", "shop"]
        fixed = {
            Regex: ["^model/"],
            DomainName: names,
            ViewName: [*names, "page.text", "live.vision"],
            Template: ["a {}"],
        }
        return st.sampled_from(fixed[hint]) if hint in fixed else valid_values(base).filter(limit.allows)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is dict:
        return st.dictionaries(*map(valid_values, get_args(hint)), min_size=1)
    if get_origin(hint) is tuple:
        kinds = [kind for kind in get_args(hint) if kind is not Ellipsis]
        if len(kinds) < len(get_args(hint)):
            return st.lists(valid_values(kinds[0]), max_size=3).map(tuple)
        return st.tuples(*map(valid_values, kinds))
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    scalars = {bool: st.booleans(), int: st.integers(-2, 2000), float: st.floats(0, 2) | numbers, str: st.text()}
    return scalars[hint]


def invalid_values(hint):
    """Returns a strategy for invalid values of a field."""
    if get_origin(hint) is Annotated:
        base, limit = get_args(hint)
        values = st.just("[") if hint is Regex else valid_values(base)
        return values.filter(lambda value: not limit.allows(value)) | invalid_values(base)
    if get_origin(hint) is dict:
        entries = st.dictionaries(st.text(max_size=3), invalid_values(get_args(hint)[1]), max_size=2)
        return st.text() | st.integers() | st.none() | entries
    if get_origin(hint) is tuple:
        entry = get_args(hint)[0]
        return st.text() | st.integers() | st.none() | st.lists(invalid_values(entry), min_size=1, max_size=3)
    others = [st.none(), st.lists(st.integers()), st.dictionaries(st.text(), st.integers()), st.binary()]
    if hint is not bool:
        others.append(st.booleans())
    if hint is not str:
        others.append(st.text().filter(lambda text: text not in get_args(hint)))
    if hint not in (int, float):
        others.append(st.integers())
    if hint is not float:
        others.append(st.floats())
    else:
        others += [st.sampled_from([math.nan, math.inf, -math.inf]), st.just(10**400)]
    return st.one_of(others)


def field_hints(kind=RunConfig, prefix=""):
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from field_hints(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


HINTS = dict(field_hints())


def problems_of(changes):
    try:
        config = replace_fields(DEFAULT, changes)
    except ValueError as error:
        return str(error)
    wanted = flatten_keys(changes)
    assert {key: value for key, value in flatten(config).items() if key in wanted} == wanted
    return ""


@pytest.mark.parametrize("key", HINTS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_valid_values_are_accepted_or_reported_with_their_key(key, data):
    problems = problems_of({key: data.draw(valid_values(HINTS[key]))})
    assert not problems or all("config." in line for line in problems.splitlines()[1:])
    assert not problems or f"config.{key}" in problems or key in ("model.vision.stem", "losses.sigmoid.weight")


@pytest.mark.parametrize("key", HINTS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_invalid_values_are_reported_with_their_key(key, data):
    problems = problems_of({key: data.draw(invalid_values(HINTS[key]))})
    assert re.search(rf"^  config\.{re.escape(key)}(\[.*?\]|\.\S*)* is ", problems, re.MULTILINE)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_mixture_of_values_is_accepted_or_reported(data):
    keys = data.draw(st.lists(st.sampled_from(sorted(HINTS)), unique=True))
    invalid = data.draw(st.sets(st.sampled_from(keys))) if keys else set()
    changes = {key: data.draw((invalid_values if key in invalid else valid_values)(HINTS[key])) for key in keys}
    problems = problems_of(changes)
    assert all(f"config.{key}" in problems for key in invalid)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["seed", "data", "model", "train"]) | st.text(),
        st.recursive(
            st.none() | st.integers() | st.text(),
            lambda inner: st.dictionaries(st.sampled_from(["steps", "frames", "vision"]) | st.text(), inner),
        ),
    )
)
def test_any_nested_mapping_is_accepted_or_reported(fields):
    with pytest.raises(ValueError, match="invalid config"):
        resolve_config(fields)

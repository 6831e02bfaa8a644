"""Texts of synthetic products in Chinese: titles of pages and noisy transcripts of clips."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.catalog.release_parser import NO_TEXT
from data_prep.synthetic.products import Product, Recipe

_PHRASES = json.loads(Path(__file__).with_name("phrases.json").read_text(encoding="utf-8"))
# Attribute or origin → value → words for it.
WORDS = _PHRASES["words"] | dict.fromkeys(("base", "second", "trim", "ink"), _PHRASES["words"]["color"])
HOMOPHONES = _PHRASES["homophones"]  # characters that speech recognition confuses because they sound alike

# Colors other than the base → the attribute after which titles name them.
ATTACHED = {"second": "base", "trim": "category", "ink": "mark"}

# Titles always name the brand and the category, and omit each other attribute at this rate.
TITLE_OMITS = 0.12
TITLE_TALK_WORDS = (1, 4)
# Transcripts omit or garble each attribute and the brand at these rates.
ASR_OMITS = 0.18
ASR_OMITS_BRAND = 0.35
ASR_GARBLES = 0.08
ASR_MISSING = 0.10
COMMAS = (",", "，", "，", " ")


def title(products: Sequence[Product], recipe: Recipe, rng: np.random.Generator) -> str:
    """Writes a title: brands and attributes of the products in random order and wording, with shop talk.

    For example, `爆款 华诺 竖条纹 手提包 酒红配雪白 爱心 高款 包邮`.
    """
    described = f" {_pick(_PHRASES['joining'], rng)} ".join(_description(product, recipe, rng) for product in products)
    words = described.split(" ")
    for talk in rng.choice(_PHRASES["title_talk"], rng.integers(*TITLE_TALK_WORDS, endpoint=True), replace=False):
        # At either end, because in between it would separate the words of a product.
        words.insert(0 if rng.random() < 0.5 else len(words), str(talk))
    return " ".join(words)


def transcript(products: Sequence[Product], recipe: Recipe, rng: np.random.Generator) -> str:
    """Writes the transcript of a clip: chatter with omitted and misheard words, or `空` if nobody speaks."""
    if rng.random() < ASR_MISSING:
        return NO_TEXT
    count = rng.integers(*recipe.chatter, endpoint=True)
    sentences = [str(s) for s in rng.choice(_PHRASES["asr_chatter"], count, replace=False)]
    for product in products:
        sentences += _spoken(product, recipe, rng)
    sentences = [sentences[i] for i in rng.permutation(len(sentences))]
    return sentences[0] + "".join(_pick(COMMAS, rng) + sentence for sentence in sentences[1:])


def _spoken(product: Product, recipe: Recipe, rng: np.random.Generator) -> list[str]:
    """Returns the sentences about a product that are not omitted."""
    sentences, said = _PHRASES["asr_sentences"][str(recipe.number)], []
    for name, spoken in [*_words(product, recipe, rng).items(), ("brand", product.brand)]:
        if rng.random() < (ASR_OMITS_BRAND if name == "brand" else ASR_OMITS):
            continue
        if rng.random() < ASR_GARBLES:
            spoken = misheard(spoken, rng)
        said.append(_pick(sentences[name], rng).format(spoken))
    return said


def _description(product: Product, recipe: Recipe, rng: np.random.Generator) -> str:
    """Returns the words for the brand, usually first, and the attributes of a product in random order."""
    words = _words(product, recipe, rng)
    named = [name for name in words if name == "category" or rng.random() >= TITLE_OMITS]
    parts = [words[name] for name in rng.permutation([name for name in named if name not in ATTACHED])]
    for name, neighbor in ATTACHED.items():  # phrases mark these colors as what they are
        if name in named:
            phrase = _pick(_PHRASES["title_phrases"][name], rng).format(words[name])
            place = parts.index(words[neighbor]) if neighbor in named else int(rng.integers(len(parts)))
            parts.insert(place + 1, phrase)
    parts.insert(0 if rng.random() < 0.7 else int(rng.integers(len(parts) + 1)), product.brand)
    return " ".join(parts)


def _words(product: Product, recipe: Recipe, rng: np.random.Generator) -> dict[str, str]:
    """Returns one of the words for each attribute of a product and its origin, if it has one, by name."""
    values = {name: getattr(product.attributes, name) for name in recipe.attributes}
    if product.origin:
        values["origin"] = product.origin
    return {name: _pick(WORDS[name][value], rng) for name, value in values.items()}


def misheard(spoken: str, rng: np.random.Generator) -> str:
    """Replaces one or two characters by others that sound alike, if the word has such characters."""
    places = [i for i, character in enumerate(spoken) if character in HOMOPHONES]
    characters = list(spoken)
    for i in rng.permutation(places)[: rng.integers(1, 3)]:
        characters[i] = HOMOPHONES[characters[i]]
    return "".join(characters)


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]

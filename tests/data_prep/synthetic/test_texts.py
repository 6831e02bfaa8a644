"""Tests titles and transcripts."""

import collections
from typing import NamedTuple

import numpy as np
import pytest

from data_prep.synthetic import texts
from data_prep.synthetic.products import RECIPES, Product, Recipe, sample_products
from data_prep.synthetic.texts import HOMOPHONES, WORDS

RNG = np.random.default_rng(0)


class Sample(NamedTuple):
    """Products of a recipe with a title and a transcript of each."""

    recipe: Recipe
    products: list[Product]
    titles: list[str]
    transcripts: list[str]

    def share(self, some: list[str], attribute: str) -> float:
        """Returns the share of texts that name an attribute of their product."""
        pairs = zip(some, self.products, strict=True)
        return float(np.mean([names(text, product, attribute) for text, product in pairs]))


@pytest.fixture(scope="module", params=RECIPES)
def sample(request):
    recipe, rng = RECIPES[request.param], np.random.default_rng(0)
    products = sample_products(400, 8, 2, recipe)[0]
    titles = [texts.title([product], recipe, rng) for product in products]
    return Sample(recipe, products, titles, [texts.transcript([product], recipe, rng) for product in products])


def names(text, product, attribute) -> bool:
    value = product.origin if attribute == "origin" else getattr(product.attributes, attribute)
    return any(word in text for word in WORDS[attribute][value])


def spoken(recipe) -> list[str]:
    """Returns the attributes that texts may omit, and the origin."""
    return [name for name in (*recipe.attributes, *recipe.names) if name not in ("category", "brand")]


def test_every_value_has_several_words_and_no_word_means_two_values():
    used = collections.defaultdict(set)
    for recipe in RECIPES.values():
        for name, values in (*recipe.attributes.items(), ("origin", recipe.names.get("origin", ()))):
            used[name].update(values)
    assert {name: set(words) for name, words in WORDS.items() if name != "color"} == used
    for values in WORDS.values():
        every = [word for words in values.values() for word in words]
        assert len(every) == len(set(every))
        assert min(map(len, values.values())) >= 3


def test_titles_always_name_brand_and_category_and_usually_the_rest(sample):
    assert all(product.brand in title for title, product in zip(sample.titles, sample.products, strict=True))
    assert sample.share(sample.titles, "category") == 1
    for attribute in spoken(sample.recipe):
        assert sample.share(sample.titles, attribute) == pytest.approx(0.88, abs=0.06), attribute


def test_titles_of_one_product_differ_in_words_and_order(sample):
    product = sample.products[0]
    several = {texts.title([product], sample.recipe, RNG) for _ in range(20)}
    assert len(several) == 20
    assert len({title.split(" ").index(product.brand) for title in several}) > 2


def test_a_title_of_two_products_names_both(sample):
    first, second = sample.products[:2]
    title = texts.title([first, second], sample.recipe, RNG)
    assert first.brand in title
    assert names(title, first, "category")
    assert second.brand in title
    assert names(title, second, "category")


def test_transcripts_are_missing_at_their_rate(sample):
    assert np.mean([text == "空" for text in sample.transcripts]) == pytest.approx(0.10, abs=0.04)
    assert "空" not in "".join(text for text in sample.transcripts if text != "空")


def test_transcripts_fit_the_text_length_of_the_demo_and_use_both_commas(sample):
    said = [text for text in sample.transcripts if text != "空"]
    lengths = np.array([len(text.replace(" ", "")) + 2 for text in said])  # a token per character, and two at the ends
    assert 70 < lengths.mean() < 82
    assert (lengths > 96).mean() < 0.08
    assert np.mean(["," in text for text in said]) > 0.9
    assert np.mean(["，" in text for text in said]) > 0.9


def test_transcripts_omit_and_garble_attributes(sample):
    said = 0.90 * 0.82
    for attribute in ("category", *spoken(sample.recipe)):
        clear = sample.share(sample.transcripts, attribute)
        assert 0.7 * said < clear < said + 0.05, attribute
    brands = np.mean([product.brand in text for text, product in zip(sample.transcripts, sample.products, strict=True)])
    assert brands == pytest.approx(0.90 * 0.65 * 0.92, abs=0.06)


def test_a_misheard_word_sounds_alike_and_is_no_other_word():
    assert texts.misheard("学生", RNG) == "学生"
    every = {word for values in WORDS.values() for words in values.values() for word in words}
    garbled = {word: {texts.misheard(word, RNG) for _ in range(20)} for word in every}
    changed = {word for word, heard in garbled.items() if word not in heard}
    assert len(changed) > 0.9 * len(every)
    for word in changed:
        assert not garbled[word] & every, word
        for heard in garbled[word]:
            pairs = [(a, b) for a, b in zip(word, heard, strict=True) if a != b]
            assert 1 <= len(pairs) <= 2
            assert all(HOMOPHONES[a] == b for a, b in pairs)


def test_texts_depend_only_on_the_generator(sample):
    for write in (texts.title, texts.transcript):
        first, again, other = (
            write(sample.products[:1], sample.recipe, np.random.default_rng(seed)) for seed in (4, 4, 5)
        )
        assert first == again != other

"""Tests titles and transcripts."""

import numpy as np
import pytest

from data_prep.synthetic import texts
from data_prep.synthetic.products import VALUES, sample_products
from data_prep.synthetic.texts import HOMOPHONES, WORDS

PRODUCTS = sample_products(400, 8, seed=2)[0]
RNG = np.random.default_rng(0)
TITLES = [texts.title([product], RNG) for product in PRODUCTS]
TRANSCRIPTS = [texts.transcript([product], RNG) for product in PRODUCTS]


def names(text, product, attribute) -> bool:
    return any(word in text for word in WORDS[attribute][getattr(product.attributes, attribute)])


def share(some, attribute) -> float:
    return np.mean([names(text, product, attribute) for text, product in zip(some, PRODUCTS, strict=True)])


def test_every_value_has_several_words_and_no_word_means_two_values():
    assert {name: set(words) for name, words in WORDS.items()} == {n: set(v) for n, v in VALUES.items()}
    for values in WORDS.values():
        every = [word for words in values.values() for word in words]
        assert len(every) == len(set(every))
        assert min(map(len, values.values())) >= 3


def test_titles_always_name_brand_and_category_and_usually_the_rest():
    assert all(product.brand in title for title, product in zip(TITLES, PRODUCTS, strict=True))
    assert share(TITLES, "category") == 1
    for attribute in ("base", "second", "pattern", "mark", "proportion"):
        assert share(TITLES, attribute) == pytest.approx(0.88, abs=0.06), attribute


def test_titles_of_one_product_differ_in_words_and_order():
    product = PRODUCTS[0]
    several = {texts.title([product], RNG) for _ in range(20)}
    assert len(several) == 20
    assert len({title.split(" ").index(product.brand) for title in several}) > 2


def test_a_title_of_two_products_names_both():
    first, second = PRODUCTS[:2]
    title = texts.title([first, second], RNG)
    assert first.brand in title
    assert names(title, first, "category")
    assert second.brand in title
    assert names(title, second, "category")


def test_transcripts_are_missing_at_their_rate():
    assert np.mean([text == "空" for text in TRANSCRIPTS]) == pytest.approx(0.10, abs=0.04)
    assert "空" not in "".join(text for text in TRANSCRIPTS if text != "空")


def test_transcripts_are_long_and_use_both_commas():
    spoken = [text for text in TRANSCRIPTS if text != "空"]
    assert np.mean([len(text) for text in spoken]) > 70
    assert np.mean(["," in text for text in spoken]) > 0.9
    assert np.mean(["，" in text for text in spoken]) > 0.9


def test_transcripts_omit_and_garble_attributes():
    said = 0.90 * 0.82
    for attribute in ("base", "second", "pattern", "mark", "proportion", "category"):
        clear = share(TRANSCRIPTS, attribute)
        assert 0.7 * said < clear < said + 0.05, attribute
    brands = np.mean([product.brand in text for text, product in zip(TRANSCRIPTS, PRODUCTS, strict=True)])
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


def test_texts_depend_only_on_the_generator():
    for write in (texts.title, texts.transcript):
        first, again, other = (write(PRODUCTS[:1], np.random.default_rng(seed)) for seed in (4, 4, 5))
        assert first == again != other

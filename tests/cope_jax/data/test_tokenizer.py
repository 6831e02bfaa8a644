"""Tokenizers: training, encoding, loading and saving, and noise in texts."""

import numpy as np
import pytest
from huggingface_hub import constants
from transformers import BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from cope_jax.data.tokenizer import TextAugment, encode, load_tokenizer, save_tokenizer, train_wordpiece

TEXTS = ["红色连衣裙 ABC", "红裙,买1送1", "abc abd 红", ""]


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return train_wordpiece(TEXTS, 40)


def tokens_of(tokenizer, text: str, length: int) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(encode(tokenizer, [text], length)[0]))


def test_vocabulary_by_hand(trained):
    vocabulary = trained.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # By frequency: a b 红 three times; 1 c 裙 twice; the others once, by code point; b, c and d occur in words.
    assert tokens[5:19] == ["a", "b", "红", "1", "c", "裙", ",", "d", "买", "色", "衣", "连", "送", "##b"]
    assert set(tokens[19:]) == {"##c", "##d", "ab", "abc", "abd"}


def test_encode_by_hand(trained):
    assert tokens_of(trained, "红色 Abc,abdc", 9) == "[CLS] 红 色 abc , abd ##c [SEP] [PAD]"
    assert tokens_of(trained, "€ 红x 红", 6) == "[CLS] [UNK] 红 [UNK] 红 [SEP]"


def test_a_long_text_keeps_its_separator_and_a_fitting_one_all_tokens(trained):
    assert tokens_of(trained, "红色连衣裙", 7) == "[CLS] 红 色 连 衣 裙 [SEP]"
    assert tokens_of(trained, "红色连衣裙", 6) == "[CLS] 红 色 连 衣 [SEP]"


def test_missing_texts_are_rows_of_zeros(trained):
    ids = encode(trained, ["", "红", ""], 4)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [[0] * 4, [2, 7, 3, 0], [0] * 4])
    np.testing.assert_array_equal(encode(trained, [""], 3), [[0, 0, 0]])


def test_training_is_deterministic():
    # Many ties in frequency and more characters than fit, so that an arbitrary order would be visible.
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghij  红蓝衣服裙子x12"), 30)) for _ in range(200)]
    first, *others = (train_wordpiece(texts, 90).get_vocab() for _ in range(4))
    assert len(first) == 90
    assert others == [first] * 3


def test_a_small_vocabulary_drops_the_rarest_characters():
    tokenizer = train_wordpiece(["衣衣衣裙裙买"], 7)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer)))[5:] == ["衣", "裙"]
    assert tokens_of(tokenizer, "买裙", 4) == "[CLS] [UNK] 裙 [SEP]"


def test_a_saved_tokenizer_loads_and_encodes_the_same(trained, tmp_path):
    folder = tmp_path / "work" / "tokenizer"
    save_tokenizer(trained, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]  # no temporary folder is left
    loaded = load_tokenizer(folder)
    assert loaded.get_vocab() == trained.get_vocab()
    np.testing.assert_array_equal(encode(loaded, TEXTS, 6), encode(trained, TEXTS, 6))


def test_saving_keeps_an_existing_folder_and_leaves_nothing_on_failure(trained, tmp_path, monkeypatch):
    folder = tmp_path / "tokenizer"
    save_tokenizer(trained, folder)
    save_tokenizer(train_wordpiece(["别的"], 20), folder)
    assert load_tokenizer(folder).get_vocab() == trained.get_vocab()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        save_tokenizer(trained, tmp_path / "second")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_saved_truncation_and_padding_are_ignored(trained, tmp_path):
    copy = train_wordpiece(TEXTS, 40)
    copy.backend_tokenizer.enable_truncation(3)
    copy.backend_tokenizer.enable_padding(length=9, pad_id=1)
    save_tokenizer(copy, tmp_path / "cut")
    np.testing.assert_array_equal(encode(load_tokenizer(tmp_path / "cut"), TEXTS, 8), encode(trained, TEXTS, 8))


def test_a_folder_with_a_bert_vocabulary_loads(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n红\n裙\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    np.testing.assert_array_equal(encode(load_tokenizer(tmp_path), ["红裙子"], 6), [[2, 5, 6, 1, 3, 0]])


def test_the_error_for_a_missing_tokenizer_says_what_to_download(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in (tmp_path / "nowhere", tmp_path, "no-one/no-such-tokenizer"):
        with pytest.raises(FileNotFoundError, match=rf"no tokenizer '{name}'.*hf download .* --local-dir"):
            load_tokenizer(name)


def test_unsuitable_tokenizers_are_reported(tmp_path):
    padded_last = BertTokenizer(vocab={"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "[MASK]": 4})
    padded_last.save_pretrained(tmp_path / "padded_last")
    with pytest.raises(ValueError, match="pads with id 3"):
        load_tokenizer(tmp_path / "padded_last")
    GPT2Tokenizer(vocab={"<pad>": 0, "a": 1}, merges=[], pad_token="<pad>").save_pretrained(tmp_path / "gpt")
    with pytest.raises(ValueError, match="has no separator"):
        load_tokenizer(tmp_path / "gpt")


def test_invalid_training_arguments_are_reported():
    with pytest.raises(ValueError, match="vocab_size is 5; 5 entries are special"):
        train_wordpiece(TEXTS, 5)


def test_without_texts_there_are_only_special_tokens():
    tokenizer = train_wordpiece(["", "  "], 30)
    assert tokenizer.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    assert encode(tokenizer, ["red", ""], 4).tolist() == [[2, 1, 3, 0], [0, 0, 0, 0]]


def test_augmentation_changes_the_configured_fractions_and_no_short_text():
    text = "abcdefghijklmnopqrst"  # 20 characters: 4 are changed
    rng = np.random.default_rng(0)
    noisy = [copy for copy in (TextAugment()(text, rng) for _ in range(2000)) if copy != text]
    assert len(noisy) / 2000 == pytest.approx(0.6, abs=0.03)
    dropped = sum(len(set(text) - set(copy)) for copy in noisy)
    doubled = sum(copy.count(letter * 2) for copy in noisy for letter in text)
    blanks = sum(copy.count(" ") for copy in noisy)
    assert dropped + doubled + blanks == 4 * len(noisy)
    for kind in (dropped, doubled, blanks):
        assert kind / (4 * len(noisy)) == pytest.approx(1 / 3, abs=0.03)
    always = TextAugment(probability=1.0)
    assert always("abcdefghi", rng) == "abcdefghi"
    assert always("", rng) == ""

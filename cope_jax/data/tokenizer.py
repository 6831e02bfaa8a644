"""Tokenizers: texts to token ids, with fast tokenizers of Hugging Face from a folder, the hub or trained WordPiece."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cope_jax.exported import check_regexes, encode_texts
from data_prep.common.files import atomic_folder, read_json
from data_prep.common.hub import find_folder

# In BERT's order: padding has id 0, as batches require.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUED = "##"
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
SETTING_FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
GENERAL = ("TokenizersBackend", "PreTrainedTokenizerFast")  # names of the class of trained tokenizers
OPEN_CLIP = "open_clip_config.json"
HUB_FILES = (*VOCABULARY_FILES, *SETTING_FILES, OPEN_CLIP)
MAX_UNKNOWN, MAX_CUT = 0.05, 0.2  # shares of unknown tokens and of truncated texts beyond which there is a warning
CASED = 0.01  # share of entries with capitals from which a vocabulary is cased; uncased ones have a few by mistake


@dataclass(frozen=True)
class TextAugment:
    """Typing noise for texts: doubles, drops or appends a blank to some characters."""

    probability: float = 0.6  # fraction of texts that change
    fraction: float = 0.2  # fraction of characters that change in these
    min_length: int = 10  # shorter texts, in characters, never change

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        if len(text) < self.min_length or rng.random() >= self.probability:
            return text
        characters = list(text)
        for position in rng.choice(len(text), int(len(text) * self.fraction), replace=False):
            character = text[position]
            characters[position] = (character * 2, "", character + " ")[rng.integers(3)]
        return "".join(characters)


def load_tokenizer(name_or_folder: str | Path, *, download: bool = True) -> PreTrainedTokenizerFast:
    """Loads a fast tokenizer from a folder (tokenizer.json or vocab.txt) or of a model on the Hugging Face hub.

    Truncation and padding settings in the files are turned off, because `encode` does both. No code from the folder is
    run, and regular expressions that could take forever are refused.

    Args:
        name_or_folder: Name of a folder or hub repository ("owner/name" or "owner/name@revision"), or path of a folder.
        download: Use the hub; otherwise, only its cache on this machine.

    Raises:
        FileNotFoundError: There is no such folder or repository, or it has no tokenizer.
        ValueError: A file is invalid, or the tokenizer is not a fast one, it starts texts with id 0, which is padding
            in batches, or it does not end them with a separator.
    """
    name = str(name_or_folder)
    if isinstance(name_or_folder, Path):
        folder = name_or_folder
    else:
        folder = find_folder(name, HUB_FILES, key="config.data.tokenizer", download=download)
    if not any((folder / file).exists() for file in VOCABULARY_FILES):
        raise FileNotFoundError(
            f"{folder} has no tokenizer: copy one there, that is tokenizer.json, or vocab.txt with config.json, and "
            "tokenizer_config.json if there is one"
        )
    paths = [folder / name for name in ("config.json", "tokenizer_config.json", "tokenizer.json", OPEN_CLIP)]
    settings = {path.name: read_json(path, remedy="copy it again") if path.exists() else {} for path in paths}
    check_regexes(settings["tokenizer.json"], folder / "tokenizer.json")
    # A vocab.txt alone does not say whether texts are lower-cased.
    options: dict[str, Any] = {}
    if not settings["tokenizer.json"] and "do_lower_case" not in settings["tokenizer_config.json"]:
        vocabulary = folder / "vocab.txt"
        if vocabulary.exists() and is_cased(vocabulary.read_text(encoding="utf-8").split("\n")):
            options = {"do_lower_case": False}
    open_clip = settings[OPEN_CLIP].get("model_cfg", {}).get("text_cfg", {}).get("tokenizer_kwargs", {})
    # The classes that these files name cannot be used: T5's has other rules for texts, and SigLIP's is not a fast one.
    canonical = open_clip.get("clean") == "canonicalize"
    plain = canonical or settings["tokenizer_config.json"].get("tokenizer_class") == "SiglipTokenizer"
    make: Any = PreTrainedTokenizerFast
    general = settings["tokenizer_config.json"].get("tokenizer_class") in GENERAL
    if not (settings["tokenizer.json"] and (plain or general)):
        # Not at the top: it imports torch if that is installed, which takes seconds.
        from transformers import AutoTokenizer

        make = AutoTokenizer
    try:
        tokenizer = make.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # the class that the tokenizers package raises for an invalid file
        raise ValueError(
            f"{folder} has no valid tokenizer ({str(error).strip().partition(chr(10))[0]}); save it again with "
            "`save_pretrained` of a tokenizer of transformers that needs no code of its own"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer {name!r} is a {type(tokenizer).__name__}, not a fast tokenizer")
    if plain:
        tokenizer = normalize(tokenizer, *canonical_text(" " if canonical else ""))
    # CLIP and SigLIP pad with their last token, which their text towers do not tell from 0 after the end of a text.
    if tokenizer.pad_token_id not in (0, tokenizer.eos_token_id):
        raise ValueError(
            f"tokenizer {name!r} pads with id {tokenizer.pad_token_id}, but batches and models need 0: use a "
            "BERT-style vocabulary with [PAD] first"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    ids = tokenizer.backend_tokenizer.encode("a").ids
    if not ids or ids[0] == 0 or ids[-1] != separator_id(tokenizer):
        raise ValueError(
            f"tokenizer {name!r} has no separator: use one that ends texts with it, such as BERT's ([CLS] … [SEP]), "
            "CLIP's or SigLIP's"
        )
    return tokenizer


def separator_id(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Returns the id of the token that ends texts: BERT's separator, or the end of CLIP and SigLIP."""
    found = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    return found if isinstance(found, int) else None


def canonical_text(underscore: str) -> list[normalizers.Normalizer]:
    """Returns the steps of SigLIP's rules for texts: lower-case, no ASCII punctuation, single spaces."""
    replaced = (("_", underscore), (Regex(r"[!-/:-@\[-`{-~]"), ""), (Regex(r"\s+"), " "))
    return [normalizers.Lowercase(), *(normalizers.Replace(*pair) for pair in replaced), normalizers.Strip()]


def normalize(tokenizer: PreTrainedTokenizerFast, *steps: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that changes texts by some steps first, such as `normalizers.Lowercase()`.

    It is of a general class: that of SigLIP 2's tokenizer (Gemma's) would be loaded again without the change.
    """
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokenizer.special_tokens_map)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes a folder for `load_tokenizer` atomically, unless it exists."""
    if not (folder := Path(folder)).exists():
        with atomic_folder(folder) as unfinished:
            tokenizer.save_pretrained(unfinished)


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a lower-case BERT-style WordPiece tokenizer.

    The normalizer separates Chinese characters, so only Latin words and numbers are merged from pieces. The same texts
    give the same vocabulary with the same ids. The least frequent characters that do not fit become [UNK]. Without any
    text, the vocabulary has the special tokens only.

    Args:
        texts: Training texts.
        vocab_size: Maximum number of entries.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size is {vocab_size}; {len(SPECIAL_TOKENS)} entries are special tokens")
    tokenizer = _bert_tokenizer({token: i for i, token in enumerate(SPECIAL_TOKENS)})
    split, normalize = tokenizer.pre_tokenizer.pre_tokenize_str, tokenizer.normalizer.normalize_str
    words = Counter(word for text in texts for word, _ in split(normalize(text)))
    alphabet, continued = _alphabet(words, room=vocab_size - len(SPECIAL_TOKENS))
    # By default, the trainer numbers characters in the order of a randomly seeded hash map and breaks ties between
    # merges by these numbers, so vocabularies differ. Characters that are special tokens of a temporary tokenizer have
    # fixed numbers.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *alphabet, *continued],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUED,
        show_progress=False,
    )
    scratch = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    scratch.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    scratch.train_from_iterator((word for word, count in words.items() for _ in range(count)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=_bert_tokenizer(scratch.get_vocab()),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int, template: str = "{}") -> np.ndarray:
    """Returns the token ids of texts in a template such as "a photo of {}", i32[N, length], see `encode_texts`."""
    # Use the backend, because the tokenizer's own call sets truncation on an object that threads share.
    filled = [text and template.replace("{}", text) for text in texts]
    return encode_texts(tokenizer.backend_tokenizer, filled, length, separator_id(tokenizer))


def describe_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> str:
    """Returns how well a tokenizer suits texts that are cut to a number of tokens, with warnings if it does not."""
    backend = tokenizer.backend_tokenizer
    found = [encoding.ids for encoding in backend.encode_batch_fast(list(texts))]
    tokens = sum(map(len, found)) - len(found) * backend.num_special_tokens_to_add(False)
    unknown = sum(token == tokenizer.unk_token_id for ids in found for token in ids) / max(tokens, 1)
    cut = sum(len(ids) > length for ids in found) / max(len(found), 1)
    lines = [f"texts: {unknown:.1%} of the tokens are unknown, {cut:.1%} of the texts are longer than {length} tokens"]
    if unknown > MAX_UNKNOWN:
        lines.append(
            f"WARNING: {unknown:.0%} of the tokens are {tokenizer.unk_token}, so texts lose their meaning: set "
            "config.data.tokenizer, and the weights of the text encoder, to those for the language of the texts"
        )
    if cut > MAX_CUT:
        lines.append(f"WARNING: {cut:.0%} of the texts are truncated: increase config.data.text_length ({length})")
    normalizer = backend.normalizer
    if normalizer and normalizer.normalize_str("A") == "a" and is_cased(tokenizer.get_vocab()):
        lines.append(
            "WARNING: the tokenizer lower-cases texts, but its vocabulary has capitals, which are never used: set "
            '"do_lower_case" to false in its tokenizer_config.json, and "lowercase" in its tokenizer.json'
        )
    return "\n".join(lines)


def is_cased(vocabulary: Collection[str]) -> bool:
    """Returns whether a vocabulary distinguishes capitals; special tokens like [CLS] do not count."""
    words = [token for token in vocabulary if not re.fullmatch(r"\[\w+\]|<.*>", token)]
    return sum(token != token.lower() for token in words) > CASED * len(words)


def _bert_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=CONTINUED))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return tokenizer


def _alphabet(words: Counter[str], *, room: int) -> tuple[list[str], list[str]]:
    """The most frequent characters of words, and "##c" for those that occur inside words, up to `room` entries.

    Ties in frequency are broken by code point.
    """
    counts, inside = Counter(), set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        inside.update(word[1:])
    alphabet, continued = [], []
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        entries = 1 + (character in inside)
        if len(alphabet) + len(continued) + entries > room:
            break
        alphabet.append(character)
        if character in inside:
            continued.append(CONTINUED + character)
    return alphabet, continued

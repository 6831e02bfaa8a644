"""Text → token ids: Hugging Face fast tokenizers, from a folder, the hub or trained here as WordPiece."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

# BERT's order: the padding id is 0, as the batches need it.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUED = "##"


@dataclass(frozen=True)
class TextAugment:
    """Typing noise: in a share `probability` of texts with at least `min_length` characters, a share
    `fraction` of the characters are each doubled, dropped or followed by a blank."""

    probability: float = 0.6
    fraction: float = 0.2
    min_length: int = 10

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        if len(text) < self.min_length or rng.random() >= self.probability:
            return text
        characters = list(text)
        for position in rng.choice(len(text), int(len(text) * self.fraction), replace=False):
            character = text[position]
            characters[position] = (character * 2, "", character + " ")[rng.integers(3)]
        return "".join(characters)


def load_tokenizer(name_or_folder: str | Path, *, download: bool = True) -> PreTrainedTokenizerFast:
    """The fast tokenizer in a folder (tokenizer.json or vocab.txt), or of a model on the Hugging Face hub.

    Truncation and padding that the files ask for are turned off: `encode` does both. Without `download` the hub is
    not asked, its cache on this machine alone.

    Raises:
      FileNotFoundError: neither a folder here nor a name that the hub (or its cache) answers to.
      ValueError: it is no fast tokenizer, its padding id is not 0 or it has no separator.
    """
    # Not at the top: this import takes torch along wherever that is installed, seconds that nothing else needs.
    from transformers import AutoTokenizer

    name = str(name_or_folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=not download)
    except (OSError, ValueError) as error:  # ValueError: the folder or model is there but holds no tokenizer
        raise FileNotFoundError(
            f"no tokenizer {name!r}: it is no folder with a tokenizer, and the Hugging Face hub gave none. "
            f"Without network, run `hf download {name} --local-dir FOLDER` where there is one, and name that "
            "folder instead (tokenizer.json or vocab.txt, tokenizer_config.json and config.json are enough)"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer {name!r} is a {type(tokenizer).__name__}, not a fast tokenizer")
    if tokenizer.pad_token_id != 0:
        raise ValueError(
            f"tokenizer {name!r} pads with id {tokenizer.pad_token_id}; batches and models take 0 for "
            "padding, so use a BERT-style vocabulary with [PAD] first"
        )
    if tokenizer.sep_token_id is None:
        raise ValueError(f"tokenizer {name!r} has no separator; use a BERT-style one ([CLS] … [SEP])")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes `folder` for `load_tokenizer`, whole or not at all; one that exists is left as it is."""
    folder = Path(folder)
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)  # mkdtemp makes it private
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A BERT-style lower-case WordPiece tokenizer of at most `vocab_size` entries from training texts.

    The normaliser sets every Chinese character apart as a word, so only Latin words and numbers are
    pieced together. The same texts give the same vocabulary, id for id. Characters beyond the most frequent
    that fit into vocab_size become [UNK].

    Raises:
      ValueError: vocab_size leaves no room for characters, or the texts are all empty.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size is {vocab_size}; {len(SPECIAL_TOKENS)} entries are special tokens")
    tokenizer = _bert_tokenizer({token: i for i, token in enumerate(SPECIAL_TOKENS)})
    words = Counter(word for text in texts for word in _words(tokenizer, text))
    alphabet, continued = _alphabet(words, room=vocab_size - len(SPECIAL_TOKENS))
    if not alphabet:
        raise ValueError("cannot train a vocabulary: the training texts are all empty")
    # Left alone, the trainer numbers characters in the order of a randomly seeded hash map and breaks ties
    # between merges by those numbers: another vocabulary each time. Characters named up front, as "special"
    # tokens of a throw-away tokenizer, have fixed numbers.
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


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> np.ndarray:
    """Token ids of each text, i32[N, length], padded with 0.

    A text too long is cut so that its last token is still the separator. A missing text ("") is a row of
    zeros, without [CLS] and [SEP]: with length 5, "", "红裙" and "红色连衣裙" give
    [0, 0, 0, 0, 0], [CLS, 红, 裙, SEP, 0] and [CLS, 红, 色, 连, SEP].
    """
    ids = np.zeros((len(texts), length), np.int32)
    present = [row for row, text in enumerate(texts) if text]
    # The backend directly: the tokenizer's own call would set truncation on an object that threads share.
    encodings = tokenizer.backend_tokenizer.encode_batch_fast([texts[row] for row in present])
    for row, encoding in zip(present, encodings, strict=True):
        own = encoding.ids  # a new list each time
        ids[row, : len(own)] = own[:length]
        if len(own) > length:
            ids[row, -1] = tokenizer.sep_token_id
    return ids


def _bert_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=CONTINUED))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return tokenizer


def _words(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    normalised = tokenizer.normalizer.normalize_str(text)
    return (word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalised))


def _alphabet(words: Counter[str], *, room: int) -> tuple[list[str], list[str]]:
    """The most frequent characters of the words, and those that also occur inside words as "##c", as many as
    fit into `room` entries. Ties in frequency go by code point."""
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

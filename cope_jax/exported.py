"""Loads a model that `cope_jax.export` wrote, and embeds items with it.

This file needs jax, flatbuffers, numpy, safetensors, and tokenizers, but nothing else of this package, so it can be
copied alone.

    model = load("exports/rope")
    vectors = model.embed("page", frames, ["a red dress"])    # uint8[1, 1, 224, 224, 3] → float32[1, 128]
"""

import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

FORMAT = "cope-jax export, version 1"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
HUB_FILES = (CONFIG, WEIGHTS, "*.stablehlo", *(f"{TOKENIZER}/{name}" for name in TOKENIZER_FILES))
SIZES = ("frames", "image_size", "text_length")  # of each domain in the description
CUSTOM_CALLS = {"shape_assertion"}  # checks that all arguments have the same number of items
INVALID_PROGRAM = (struct.error, ValueError, TypeError, LookupError, AttributeError, jax.errors.JaxRuntimeError)
Program = Callable[[Mapping[str, Any], Any, Any, Any], jax.Array]


def program_file(domain: str) -> str:
    """Names a domain's program: weights, uint8[B, T, H, W, 3], bool[B, T], int32[B, L] → float32[B, E]."""
    return f"{domain}.stablehlo"


def is_export(folder: Path) -> bool:
    """Returns whether a folder has the files of an export."""
    return (folder / CONFIG).exists() and any(folder.glob(program_file("*")))


def load(folder: str | Path) -> "Exported":
    """Loads a model that `cope_jax.export` wrote, on JAX's default device.

    Raises FileNotFoundError if a file is missing, and ValueError if the folder has another format or a file is invalid.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"no {path}: name a folder that `./run.sh export` wrote")
    config = read_config(path)
    files = [WEIGHTS, f"{TOKENIZER}/tokenizer.json", *map(program_file, config["domains"])]
    if missing := [name for name in files if not (folder / name).exists()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: export again")
    tokenizer_file = folder / TOKENIZER / "tokenizer.json"
    check_regexes(json.loads(tokenizer_file.read_bytes()), tokenizer_file)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    programs = {domain: load_program(folder / program_file(domain)) for domain in config["domains"]}
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is invalid ({error}); export again") from error
    return Exported(config, jax.device_put(weights), tokenizer, programs)


def read_config(path: Path) -> dict[str, Any]:
    """Reads the description of an export. Raises ValueError if it has another format or lacks something."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if (found := config["format"]) == FORMAT:
            sizes = [config["domains"][name][key] for name in config["domains"] for key in SIZES]
            valid = all(isinstance(number, int) and 0 < number < 2**20 for number in (*sizes, config["embedding"]))
            valid = valid and all(re.fullmatch(r"\w+", name) for name in config["domains"])
            if not (valid and isinstance(config["run"], dict) and isinstance(config["separator"], int | None)):
                raise ValueError("a size or a name is out of range")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} does not describe an export: {error!r}; export again") from error
    if found != FORMAT:
        raise ValueError(f"{path} has the format {found!r}; this loader reads {FORMAT!r}")
    return config


def load_program(path: Path) -> Program:
    """Loads a program. Raises ValueError if it is invalid, or calls a function that `cope_jax.export` never calls."""
    try:
        program = export.deserialize(bytearray(path.read_bytes()))
        text = program.mlir_module()
    except INVALID_PROGRAM as error:
        raise ValueError(f"{path} is not a valid program; export again") from error
    # A call outside of the program could run anything. It is read as text, so that nothing of it is compiled.
    calls = re.findall(r'\w\.custom_call\b[" ]*(?:@([\w.]+)\()?', text)
    if others := sorted({name or "in an unknown form" for name in calls} - CUSTOM_CALLS):
        raise ValueError(f"{path} calls functions that no export of this project calls: {', '.join(others)}")
    return jax.jit(program.call)


def check_regexes(tokenizer: Any, file: Path) -> None:
    """Raises ValueError if the content of a tokenizer.json has a regular expression that could take forever.

    Accepted are expressions without groups and back-references, with at most one "?" in each alternative and a
    repetition only at its end.
    """
    if isinstance(tokenizer, dict) and isinstance(pattern := tokenizer.get("Regex"), str):
        plain = re.sub(r"\\[pP]\{[^}]*\}|\\[^1-9gk]|\[(\\.|[^\]\\])*\]", "x", pattern)  # classes and escapes
        if not all(re.fullmatch(r"[^*+?{(\\]*\??[^*+?{(\\]*([*+]|\{[\d,]+\})?", part) for part in plain.split("|")):
            raise ValueError(
                f"{file} has the regular expression {pattern!r}, which could take forever for some texts; use a "
                "tokenizer without it, such as BERT's"
            )
    parts = tokenizer.values() if isinstance(tokenizer, dict) else tokenizer if isinstance(tokenizer, list) else ()
    for part in parts:
        if isinstance(part, dict | list):
            check_regexes(part, file)


@dataclass(frozen=True)
class Exported:
    """A trained model without its source code.

    `config` is {"domains": {"page": {"frames": T, "image_size": H, "text_length": L}, …}, "embedding": E, …}.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, jax.Array]  # by name
    tokenizer: Tokenizer
    programs: Mapping[str, Program]  # of each domain, compiled once for each number of items

    def embed(
        self, domain: str, frames: np.ndarray, texts: Sequence[str], frame_mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Embeds items of a domain.

        Args:
            domain: One of config["domains"].
            frames: RGB frames uint8[B, T, H, W, 3], resized to the model's square.
            texts: B texts, "" if an item has none.
            frame_mask: bool[B, T], False for padding; by default, there is none.

        Returns:
            float32[B, E] of unit length.
        """
        if domain not in self.config["domains"]:
            raise ValueError(f"unknown domain {domain!r}: choose one of {', '.join(self.config['domains'])}")
        if isinstance(texts, str):
            raise ValueError(f"texts is the string {texts[:50]!r}; it must be a list with one text per item")
        frames, texts = np.asarray(frames), list(texts)
        sizes = self.config["domains"][domain]
        wanted = (len(texts), sizes["frames"], sizes["image_size"], sizes["image_size"], 3)
        if frames.shape != wanted or frames.dtype != np.uint8:
            raise ValueError(
                f"{domain} frames are {frames.dtype}{list(frames.shape)}; {len(texts)} texts need uint8{list(wanted)}"
            )
        if frame_mask is None:
            frame_mask = np.ones(wanted[:2], bool)
        if frame_mask.shape != wanted[:2] or frame_mask.dtype != bool:
            raise ValueError(
                f"frame_mask is {frame_mask.dtype}{list(frame_mask.shape)}; it must be bool{list(wanted[:2])}"
            )
        template = sizes.get("template", "{}")  # earlier exports have none
        tokens = self.tokens([text and template.replace("{}", text) for text in texts], sizes["text_length"])
        return np.asarray(self.programs[domain](self.weights, frames, frame_mask, tokens))

    def tokens(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Returns the token ids of texts, i32[N, length], see `encode_texts`."""
        return encode_texts(self.tokenizer, texts, length, self.config["separator"])


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], length: int, separator: int | None) -> np.ndarray:
    """Returns the token ids of texts, i32[N, length], padded with 0.

    The last token of a text that is too long is the separator. A missing text ("") is a row of zeros. With length 5,
    "", "红裙" and "红色连衣裙" give [0, 0, 0, 0, 0], [CLS, 红, 裙, SEP, 0] and [CLS, 红, 色, 连, SEP].
    """
    ids = np.zeros((len(texts), length), np.int32)
    present = [row for row, text in enumerate(texts) if text]
    encodings = tokenizer.encode_batch_fast([texts[row] for row in present])
    for row, encoding in zip(present, encodings, strict=True):
        own = encoding.ids  # a new list on each access
        ids[row, : len(own)] = own[:length]
        if len(own) > length and separator is not None:
            ids[row, -1] = separator
    return ids

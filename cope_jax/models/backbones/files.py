"""Files of published weights: finding them, listing their tensors, reading one at a time.

Only safetensors is read. The older pytorch_model.bin is a pickle, which can run any code when it is opened.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from data_prep.common.hub import find_folder

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
FILES = ["config.json", SINGLE_FILE, INDEX, "model-*-of-*.safetensors"]
CONVERT = (
    "import torch, safetensors.torch as s; "
    "w = torch.load('pytorch_model.bin', map_location='cpu', weights_only=True); "
    "s.save_file({name: x.contiguous().clone() for name, x in w.items()}, 'model.safetensors')"
)


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file; dtype as there: "F32", "BF16", "I64", …."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Weights:
    """A checkpoint of which only the headers have been read.

    Attributes:
        name: Folder or hub repository, as given by the user.
        config: Content of config.json.
        tensors: Tensors by current name.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor as float32."""
        tensor = self.tensors[name]
        with safe_open(tensor.file, "numpy") as file:
            return file.get_tensor(tensor.name).astype(np.float32)


def open_weights(name: str, *, key: str) -> Weights:
    """Finds a checkpoint and reads its config and headers.

    Args:
        name: Local folder, or repository of the Hugging Face hub: "owner/name" or "owner/name@revision".
        key: Config key of the name, for error messages.

    Raises:
        FileNotFoundError: No such folder or repository, or files are missing.
        ValueError: A file is invalid, or two tensors have the same name.
    """
    folder = find_folder(name, FILES, key=key)
    files = _tensor_files(folder, name=name, key=key)
    config = folder / "config.json"
    if not config.exists():
        raise FileNotFoundError(f"{key} is {name!r}, but {folder} has no config.json, which describes the weights")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for tensor in _list_tensors(file):
            current = _current_name(tensor.name)
            if current in tensors:
                raise ValueError(f"{name!r} has two tensors {current}: in {tensors[current].file} and in {file}")
            tensors[current] = tensor
    return Weights(name, _read_json(config), tensors)


def _tensor_files(folder: Path, *, name: str, key: str) -> list[Path]:
    """Lists the safetensors files of a folder: one, or those in its index."""
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    if (folder / INDEX).exists():
        files = [folder / Path(file).name for file in sorted(set(_read_json(folder / INDEX)["weight_map"].values()))]
        if missing := [file.name for file in files if not file.exists()]:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)} listed in its {INDEX}; download them")
        return files
    raise FileNotFoundError(
        f"{key} is {name!r}, but {folder} has no {SINGLE_FILE}. A pytorch_model.bin is a pickle, which can run "
        "any code when it is opened, and is not read. The hub often has a converted copy as a pull request: try "
        f"{key}={name}@refs/pr/1. Or convert it where torch is installed, in a folder with pytorch_model.bin and "
        f'config.json: python -c "{CONVERT}"'
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); download it again") from error


def _list_tensors(file: Path) -> list[Tensor]:
    """Lists the tensors of a safetensors file."""
    try:
        with safe_open(file, "numpy") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118  not a mapping
            return [Tensor(file, name, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()]
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}); download it again") from error


def _current_name(name: str) -> str:
    """Renames gamma and beta of LayerNorms, which checkpoints converted from TensorFlow have."""
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))

"""Files of published weights: finding them, listing their tensors, reading one at a time.

Only safetensors is read. The older pytorch_model.bin is a pickle, which can run any code when it is opened.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from cope_jax.models.backbones import open_clip
from cope_jax.models.backbones.spec import Tensor
from data_prep.common.files import read_json
from data_prep.common.hub import find_folder

DOWNLOAD = "download it again"  # the remedy for an invalid file
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
FILES = ["config.json", open_clip.CONFIG, SINGLE_FILE, INDEX, "model-*-of-*.safetensors", "*_Pooling/config.json"]
VARIANTS = ["config.json", "*.safetensors", "*.safetensors.index.*.json"]  # if a repository has none of the above
CONVERT = (
    "import torch, safetensors.torch as s; "
    "w = torch.load('pytorch_model.bin', map_location='cpu', weights_only=True); "
    "s.save_file({name: x.contiguous().clone() for name, x in w.items()}, 'model.safetensors')"
)


@dataclass(frozen=True)
class Weights:
    """A checkpoint of which only the headers have been read."""

    name: str  # folder or hub repository, as given by the user
    config: Mapping[str, Any]  # content of config.json
    tensors: Mapping[str, Tensor]  # by current name
    pooling: str | None = None  # how sentence-transformers pools its vectors, as our settings name it, if it says so

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor as float32."""
        tensor = self.tensors[name]
        with safe_open(tensor.file, "numpy") as file:
            parts = [file.get_tensor(part) for part in (tensor.name, tensor.followed_by) if part]
        value = (parts[0] if len(parts) == 1 else np.concatenate(parts))[tensor.index].astype(np.float32)
        if invalid := np.count_nonzero(~np.isfinite(value)):
            raise ValueError(
                f"{tensor.file}: {invalid} of {value.size} values of tensor {tensor.name} are not finite; download the "
                "file again, or take other weights"
            )
        return value


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
    if not any(folder.glob("*.safetensors")) and not Path(name).expanduser().is_dir():
        folder = find_folder(name, VARIANTS, key=key)
    settings = read_json(folder / open_clip.CONFIG, remedy=DOWNLOAD) if (folder / open_clip.CONFIG).exists() else {}
    if open_clip.has_siglip(settings):
        given = folder / open_clip.TENSORS
        files = [given] if given.exists() else _tensor_files(folder, name=name, key=key)
        tensors = {tensor.name: tensor for file in files for tensor in _list_tensors(file)}
        try:
            return Weights(name, *open_clip.translate(settings, tensors))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{key} is {name!r}, whose {open_clip.CONFIG} is not supported: {error}") from error
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
    return Weights(name, read_json(config, remedy=DOWNLOAD), tensors, _find_pooling(folder))


def _tensor_files(folder: Path, *, name: str, key: str) -> list[Path]:
    """Lists the safetensors files of a folder: one, or those in an index; both may have a variant like fp16."""
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    indexes = sorted(folder.glob("*.safetensors.index*.json"))
    if index := folder / INDEX if folder / INDEX in indexes else indexes[0] if len(indexes) == 1 else None:
        listed = read_json(index, remedy=DOWNLOAD).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{index} has no weight_map, which lists the files; download it again")
        files = [folder / Path(str(file)).name for file in sorted(set(listed.values()))]
        if missing := [file.name for file in files if not file.exists()]:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)} listed in its {index.name}; download them")
        return files
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise ValueError(
            f"{key} is {name!r}, but {folder} has {', '.join(file.name for file in found)}; rename the one to use to "
            f"{SINGLE_FILE}"
        )
    raise FileNotFoundError(
        f"{key} is {name!r}, but {folder} has no {SINGLE_FILE}. A pytorch_model.bin is a pickle, which can run "
        "any code when it is opened, and is not read. The hub often has a converted copy as a pull request: try "
        f"{key}={name}@refs/pr/1. Or convert it where torch is installed, in a folder with pytorch_model.bin and "
        f'config.json: python -c "{CONVERT}"'
    )


def _find_pooling(folder: Path) -> str | None:
    """Returns what sentence-transformers' pooling file says: "class", "mean" or, for what we lack, its own name."""
    for file in sorted(folder.glob("*_Pooling/config.json")):
        content = read_json(file, remedy=DOWNLOAD)
        modes = [
            name.removeprefix("pooling_mode_") for name, on in content.items() if name[:13] == "pooling_mode_" and on
        ]
        if not modes and "pooling_mode" in content:
            modes = [str(content["pooling_mode"])]
        ours = {"cls_token": "class", "cls": "class", "mean_tokens": "mean"}
        return " + ".join(ours.get(mode, mode) for mode in modes) or None
    return None


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

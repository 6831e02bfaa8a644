"""Published weights as files: where they are, which tensors they hold, one of them at a time.

safetensors only. The older pytorch_model.bin is a pickle, and unpickling a file runs whatever it says.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors asks for it
import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
FILES = ("config.json", WHOLE, INDEX, "model-*-of-*.safetensors")
CONVERT = (
    "import torch, safetensors.torch as s; "
    "w = torch.load('pytorch_model.bin', map_location='cpu', weights_only=True); "
    "s.save_file({name: x.contiguous().clone() for name, x in w.items()}, 'model.safetensors')"
)


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is, and what it is like.

    Attributes:
        file: the safetensors file that holds it.
        name: its name in there.
        shape: sizes.
        dtype: as safetensors calls it: "F32", "BF16", "I64", ….
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Weights:
    """A checkpoint, of which only the headers are read so far.

    Attributes:
        name: the folder or hub repository that was asked for.
        config: its config.json.
        tensors: by name, in today's spelling.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def read(self, name: str) -> np.ndarray:
        """One tensor, as float32."""
        tensor = self.tensors[name]
        with safe_open(tensor.file, "numpy") as file:
            return file.get_tensor(tensor.name).astype(np.float32)


def open_weights(name: str, *, key: str) -> Weights:
    """Finds a checkpoint and reads what it says of itself; no tensor yet.

    Args:
        name: a local folder, or a repository of the Hugging Face hub, "owner/name" or "owner/name@revision".
        key: of the config, which has the name; for the errors.

    Raises:
        FileNotFoundError: no such folder or repository, or it lacks files; says what to download or convert.
        ValueError: a file is damaged, or two tensors have one name.
    """
    folder = find_folder(name, key=key)
    files = tensor_files(folder, name=name, key=key)
    config = folder / "config.json"
    if not config.exists():
        raise FileNotFoundError(f"{key} is {name!r}, but {folder} has no config.json, which says what its weights are")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for tensor in headers(file):
            spelling = modern(tensor.name)
            if spelling in tensors:
                raise ValueError(f"{name!r} has two tensors {spelling}: in {tensors[spelling].file} and in {file}")
            tensors[spelling] = tensor
    return Weights(name, read_json(config), tensors)


def find_folder(name: str, *, key: str) -> Path:
    """The local folder of that name, or the hub's files in its cache, downloaded where they are not yet."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{key} is {name!r}: it is no folder here, and the Hugging Face hub gave none "
            f"({type(error).__name__}). Without network, run `hf download {repository} --local-dir FOLDER` where "
            f"there is one, bring the folder here and set {key} to it (config.json and the .safetensors files are "
            "enough)"
        ) from error


def tensor_files(folder: Path, *, name: str, key: str) -> list[Path]:
    """The safetensors files of a folder: one, or as many as its index names."""
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    if (folder / INDEX).exists():
        files = [folder / Path(file).name for file in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]
        if missing := [file.name for file in files if not file.exists()]:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which its {INDEX} names; download them")
        return files
    raise FileNotFoundError(
        f"{key} is {name!r}, but {folder} has no {WHOLE}. If its weights come only as pytorch_model.bin: that is a "
        "pickle, which can run anything when it is opened, and is not read here. The hub often has a converted copy "
        f"as a pull request: try {key}={name}@refs/pr/1. Or convert it where torch is installed, in a folder with "
        f'pytorch_model.bin and config.json: python -c "{CONVERT}"'
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that came with the weights."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); download it again") from error


def headers(file: Path) -> list[Tensor]:
    """What a safetensors file holds."""
    try:
        with safe_open(file, "numpy") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118  it is no mapping
            return [Tensor(file, name, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()]
    except SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}); download it again") from error


def modern(name: str) -> str:
    """Checkpoints from TensorFlow's days call a LayerNorm's weight and bias gamma and beta."""
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))

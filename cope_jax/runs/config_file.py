"""`config.json` of a work directory."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from cope_jax.runs.config import RunConfig, flatten
from cope_jax.runs.config_validation import add_missing_fields, replace_fields, resolve_config
from data_prep.common.differences import describe_differences, flatten_keys
from data_prep.common.files import atomic_write, read_json

FILE = "config.json"
FEATURES = "features"  # folder of a work directory: outputs of frozen encoders
FOLDER_OR_HUB = ("data.tokenizer", "model.vision.init_from", "model.text.init_from")

# Fields that may change when a run resumes: those that affect neither the parameters nor what is compared, and those
# with which to go on: after a divergence with another optimizer, or for more steps.
MAY_CHANGE = {
    "data": "data_dir threads worker_processes max_bad_fraction eval_split",
    "model": "attention scan_layers remat",
    "losses": "precision",
    "finetune": "layer_decay",
    "optimizer": "rate groups warmup_steps cosine_steps b1 b2 weight_decay decayed clip_norm clipped",
    "train": "steps log_every checkpoint_every keep_checkpoints max_skipped stall_seconds microbatch shard_optimizer "
    "wandb evaluate_every evaluate_products best_by",
    "mesh": "data fsdp tensor",
    "eval": "batch_size ways shots queries episodes",
}


def load_config(workdir: Path) -> RunConfig:
    """Reads the config of a work directory.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is invalid.
    """
    path = workdir / FILE
    if not path.exists():
        raise FileNotFoundError(f"no {path}: --workdir must name the folder of a training run")
    fields = _read(path)
    try:
        return resolve_config(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_config(config: RunConfig, workdir: Path) -> None:
    """Writes `config.json`, or compares the config with the one that is there.

    Fields in `MAY_CHANGE` may differ. Before the first checkpoint all fields may differ; then the tokenizer, the
    features of frozen encoders and the results of the untrained model are removed, since they may depend on them.

    Raises:
        ValueError: The work directory has checkpoints of a run with another config. Lists the fields that differ.
    """
    path = workdir / FILE
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    if path.exists():
        may_change = {f"config.{section}.{name}" for section, names in MAY_CHANGE.items() for name in names.split()}
        fixed = (
            {key: value for key, value in flatten_keys({"config": fields}).items() if key not in may_change}
            for fields in (_read(path), json.loads(text))
        )
        differences = describe_differences(*fixed)
        if differences and any((workdir / "checkpoints").glob("[0-9]*")):
            raise ValueError(
                f"{workdir} contains a run with another config; choose another --workdir or restore these fields:\n"
                + "\n".join(f"  {difference}" for difference in differences)
            )
        if differences:
            for folder in ("tokenizer", FEATURES, "eval/0"):
                shutil.rmtree(workdir / folder, ignore_errors=True)
        if path.read_text(encoding="utf-8") == text:
            return
    with atomic_write(path, "w") as file:
        file.write(text)


def make_paths_absolute(config: RunConfig) -> RunConfig:
    """Returns the config with absolute paths, so that a run can be evaluated from another folder.

    A tokenizer or weights whose name is not a local folder are names of the hub and stay.
    """
    fields = flatten(config)
    folders = [key for key in FOLDER_OR_HUB if fields[key] and Path(fields[key]).is_dir()]
    return replace_fields(config, {key: str(Path(fields[key]).absolute()) for key in ("data.data_dir", *folders)})


def _read(path: Path) -> dict[str, Any]:
    """Reads the fields of a run."""
    return add_missing_fields(read_json(path, remedy="copy it from a backup, or train in another --workdir"))

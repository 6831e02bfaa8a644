"""Provenance of a run: `starts.jsonl` records for each start what its results depend on."""

import json
import math
import subprocess
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from cope_jax.data.records import fingerprint
from cope_jax.runs.config import RunConfig, flatten
from cope_jax.runs.log_files import LogFile, drop_lines_after, json_line, read_json_lines
from data_prep.common.differences import describe_differences, flatten_keys

FILE = "starts.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "numpy")
GIT_SECONDS = 20  # time limit of git on a slow disk


def provenance(config: RunConfig) -> dict[str, Any]:
    """Returns all that the results of this start depend on: code, packages, devices, data, and config with seed."""
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "code": commit(Path(__file__).parent),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "devices": dict(sorted(kinds.items())),
        "processes": jax.process_count(),
        "data": fingerprint(config.data.data_dir, config.data.train_split),
        "config": {key: json.loads(json.dumps(value)) for key, value in flatten(config).items()},
    }


def commit(folder: Path) -> str:
    """Returns the git commit of a folder, with "+ changes" if files differ from it; "unknown" without git."""
    try:
        name, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{name} + changes" if changes else name


def record_start(workdir: Path, step: int, now: dict[str, Any], *, accept_other_data: bool) -> list[str]:
    """Appends a start at a step to `starts.jsonl`. Returns the changes since the previous start, one phrase each.

    Raises ValueError if the training data changed since the run began, and that is not accepted.
    """
    path = workdir / FILE
    drop_lines_after(path, math.inf)
    lines = read_json_lines(path)
    changes = []
    if lines and step:
        before = lines[-1]
        # Parts that another version of the code did not record are not changes.
        parts = (before.keys() & now.keys()) - {"step"}
        changes = describe_differences(*(flatten_keys({key: start[key] for key in parts}) for start in (before, now)))
        if before["data"] != now["data"] and not accept_other_data:
            raise ValueError(
                f"the training data differ from those {workdir} began with (fingerprint {before['data']} before, "
                f"{now['data']} now): set config.data.data_dir to these, or use --accept_other_data to continue with "
                "the new data"
            )
    LogFile(path).append(json_line({"step": step, **now}))
    return changes

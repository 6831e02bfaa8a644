"""What a run was started with, one line of `starts.jsonl` a start: so that a result can be made again."""

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

FILE = "starts.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "numpy")
SECONDS = 20  # for a slow disk to answer git


def circumstances(config: RunConfig) -> dict[str, Any]:
    """All that a run's numbers depend on, its config, which has the seed, included."""
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "code": commit(Path(__file__).parent),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "devices": {kind: count for kind, count in sorted(kinds.items())},
        "processes": jax.process_count(),
        "data": fingerprint(config.data.data_dir, config.data.train_split),
        "config": {key: json.loads(json.dumps(value)) for key, value in flatten(config)},
    }


def commit(folder: Path) -> str:
    """The git commit of the code in a folder, "+ changes" behind it where files differ; "unknown" without git."""
    try:
        name, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=SECONDS, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{name} + changes" if changes else name


def record_start(workdir: Path, step: int, now: dict[str, Any], *, accept_other_data: bool) -> list[str]:
    """Adds a start at a step to `starts.jsonl`; returns what changed since the start before, a phrase each.

    Raises:
        ValueError: the run would go on with other training data than it began with, and that is not accepted.
    """
    path = workdir / FILE
    drop_lines_after(path, math.inf)
    lines = read_json_lines(path)
    before = lines[-1] if lines and step else None
    changes = differences(before, now) if before else []
    if before and before["data"] != now["data"] and not accept_other_data:
        raise ValueError(
            f"the training data are not those that {workdir} began with (fingerprint {before['data']} there, "
            f"{now['data']} now): set config.data.data_dir to them, or --accept_other_data to go on with these"
        )
    LogFile(path).append(json_line({"step": step, **now}))
    return changes


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """["packages.jax is 0.10.2, was 0.10.1", …]; without what an older version did not write."""
    old, new = flat(before), flat({key: part for key, part in now.items() if key in before})
    return [f"{key} is {new.get(key)}, was {old.get(key)}" for key in sorted(new) if new[key] != old.get(key)]


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Two levels of a dictionary as one, keys joined by dots."""
    return {
        f"{key}.{name}" if name else key: value
        for key, part in tree.items()
        for name, value in (part.items() if isinstance(part, dict) else (("", part),))
    }

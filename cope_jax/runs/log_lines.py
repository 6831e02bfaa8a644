"""Log files of JSON lines."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

EVALUATIONS = "evaluations.jsonl"  # in a work directory: what evaluations while training found


def as_line(entry: Mapping[str, Any]) -> bytes:
    """A line of a log: JSON."""
    return json.dumps(entry).encode() + b"\n"


def rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    """Six digits of each, None for what is not finite."""
    return {name: float(f"{value:.6g}") if np.isfinite(value) else None for name, value in values.items()}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log up to one that is cut off; none where there is no such file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def keep_lines_until(path: Path, step: float) -> None:
    """Cuts off the lines of a log that are later than `step` or not whole; a full disk lets it."""
    if not path.exists():
        return
    size = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            size += len(line)
    os.truncate(path, size)

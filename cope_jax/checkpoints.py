"""Verifies checkpoints against their manifests: `python -m cope_jax.checkpoints verify runs/demo`.

DIR is a work directory, its folder `checkpoints`, or one checkpoint. The exit code is 1 if one is invalid.
"""

import sys
from pathlib import Path

from absl import app

from cope_jax import cli
from cope_jax.runs.manifest import FILE, find_problems


def main(*words: str) -> None:
    """Prints the problems of each checkpoint."""
    if len(words) != 2 or words[0] != "verify":
        raise app.UsageError("expected a command and a folder: verify DIR")
    problems = {folder: find_problems(folder) for folder in checkpoint_folders(Path(words[1]))}
    for folder, found in problems.items():
        print(f"{folder}: {'; '.join(found) if found else 'no problems found'}")
    sys.exit(1 if any(problems.values()) else 0)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, oldest first.

    Raises:
        FileNotFoundError: There are none.
    """
    parent = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    found = sorted((path for path in parent.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    if not found and folder.is_dir() and ((folder / FILE).exists() or folder.absolute().name.isdigit()):
        return [folder]
    if not found:
        raise FileNotFoundError(f"no checkpoints in {parent.absolute()}; expected a work directory or a checkpoint")
    return found


if __name__ == "__main__":
    cli.run("checkpoints", main, positional=True)

"""Checks checkpoints against their manifests: `python -m cope_jax.checkpoints verify runs/demo`.

DIR is a work directory, its folder `checkpoints`, or one checkpoint, here or copied elsewhere. Exit code 1 where one is
damaged.
"""

import sys
from pathlib import Path

from absl import app

from cope_jax import cli
from cope_jax.runs.manifest import FILE, find_damage


def main(*words: str) -> None:
    """Prints what is wrong with each checkpoint."""
    if len(words) != 2 or words[0] != "verify":
        raise app.UsageError("one command and one folder are wanted: verify DIR")
    damages = {folder: find_damage(folder) for folder in checkpoint_folders(Path(words[1]))}
    for folder, damage in damages.items():
        print(f"{folder}: {'; '.join(damage) if damage else 'as it was written'}")
    sys.exit(1 if any(damages.values()) else 0)


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first.

    Raises:
        FileNotFoundError: there are none.
    """
    parent = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    found = sorted((path for path in parent.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    if not found and folder.is_dir() and ((folder / FILE).exists() or folder.absolute().name.isdigit()):
        return [folder]
    if not found:
        raise FileNotFoundError(
            f"no checkpoints in {parent.absolute()}: name a work directory or one of its checkpoints"
        )
    return found


if __name__ == "__main__":
    cli.run("checkpoints", main, positional=True)

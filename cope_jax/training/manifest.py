"""The manifest of a checkpoint: sizes and hashes of its files, for Orbax checks its index but not the arrays' bytes."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FILE = "manifest.json"
FORMAT = 1  # of checkpoints: parts `state` and `window`, as training/checkpoints.py writes them
# Written or changed behind the manifest, when Orbax commits the checkpoint.
UNLISTED = (FILE, "_CHECKPOINT_METADATA", "commit_success.txt")
THREADS = 8  # hashing releases the GIL


def write_manifest(folder: Path) -> None:
    """Lists the files of a checkpoint that is whole but not committed yet."""
    text = json.dumps({"format": FORMAT, "files": describe(folder)}, indent=1)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def find_damage(folder: Path) -> list[str]:
    """What is wrong with a committed checkpoint, a sentence a file; nothing where it is as it was written.

    A copy is as good as its original, also one without the empty folders that buckets do not keep.
    """
    try:
        manifest = json.loads((folder / FILE).read_text(encoding="utf-8"))
        version, listed = manifest["format"], manifest["files"]
    except FileNotFoundError:
        return [f"{FILE} is missing"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{FILE} does not parse ({error})"]
    if version != FORMAT:
        return [f"it has the format {version}, which this version of the code does not know"]
    found = describe(folder)
    return [
        f"{name} is missing"
        if name not in found
        else f"{name} has {found[name]['bytes']} bytes, not {entry['bytes']}"
        if found[name]["bytes"] != entry["bytes"]
        else f"{name} has other content than was written"
        for name, entry in listed.items()
        if found.get(name) != entry
    ]


def describe(folder: Path) -> dict[str, dict[str, int | str]]:
    """Path below the folder → {"bytes", "sha256"} of every file that a manifest lists."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in UNLISTED)
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(hash_file, paths)
        return {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(paths, hashes, strict=True)
        }


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

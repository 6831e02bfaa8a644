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

    Raises:
        ValueError: a newer version of the code wrote it.
    """
    try:
        manifest = json.loads((folder / FILE).read_text(encoding="utf-8"))
        version = int(manifest["format"])
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return [f"{FILE} is missing"]
    except OSError as error:
        return [f"{FILE} cannot be read ({error.strerror})"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{FILE} does not parse ({error!r})"]
    if version > FORMAT:
        raise ValueError(
            f"{folder} has the format {version}, newer than {FORMAT}, which this version of the code writes: take the "
            "version that wrote it, or move this checkpoint out of the way"
        )
    with ThreadPoolExecutor(THREADS) as pool:
        faults = pool.map(lambda name: find_fault(folder / name, *listed[name]), listed)
        return [f"{name} {fault}" for name, fault in zip(listed, faults, strict=True) if fault]


def find_fault(path: Path, size: int, digest: str) -> str:
    """What is wrong with a file of some size and hash; nothing where it is as it was written."""
    try:
        if (found := path.stat().st_size) != size:
            return f"has {found} bytes, not {size}"
        return "" if hash_file(path) == digest else "has other content than was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


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

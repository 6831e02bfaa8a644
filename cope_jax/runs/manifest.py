"""Manifest of a checkpoint: sizes and hashes of its files. Orbax validates its index but not the bytes of arrays."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.common.files import file_sha256

FILE = "manifest.json"
FORMAT = 1  # of checkpoints: parts `state` and `window`, see checkpoints.py
# Files that Orbax writes or changes when it commits the checkpoint, after the manifest.
UNLISTED = (FILE, "_CHECKPOINT_METADATA", "commit_success.txt")
THREADS = 8  # hashing releases the GIL


def write_manifest(folder: Path) -> None:
    """Lists the files of a checkpoint that is complete but not committed."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in UNLISTED)
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(file_sha256, paths))
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }
    text = json.dumps({"format": FORMAT, "files": files}, indent=1)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def find_problems(folder: Path) -> list[str]:
    """Returns one sentence per invalid file of a committed checkpoint.

    Copies are valid, even without the empty folders, which object stores do not keep. Raises ValueError if a newer
    version of the code wrote the checkpoint.
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
        return [f"{FILE} cannot be parsed ({error!r})"]
    if version > FORMAT:
        raise ValueError(
            f"{folder} has format {version}, but this version of the code supports formats up to {FORMAT}: use the "
            "version that wrote it, or move this checkpoint elsewhere"
        )
    with ThreadPoolExecutor(THREADS) as pool:
        problems = pool.map(lambda name: _file_problem(folder / name, *listed[name]), listed)
        return [f"{name} {problem}" for name, problem in zip(listed, problems, strict=True) if problem]


def _file_problem(path: Path, size: int, digest: str) -> str:
    """Returns what is wrong with a file of a known size and hash, or an empty string."""
    try:
        if (found := path.stat().st_size) != size:
            return f"has {found} bytes instead of {size}"
        return "" if file_sha256(path) == digest else "has changed: its hash differs"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"

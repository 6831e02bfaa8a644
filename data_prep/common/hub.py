"""Repositories of the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path

TIMEOUT = 4.0  # seconds in which the hub must answer


def find_folder(name: str, files: Sequence[str], *, key: str, download: bool = True) -> Path:
    """Returns the local folder of that name, or the cache of the hub repository, downloaded if necessary.

    Fails at once without network access, unlike the loaders of transformers, which try again for almost a minute.

    Args:
        name: Local folder, or repository of the hub: "owner/name" or "owner/name@revision".
        files: Patterns of the files to download.
        key: Config key of the name, for the error message.
        download: Use the hub; otherwise, only its cache on this machine.

    Raises:
        FileNotFoundError: There is no such folder or repository.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    # Not at the top: it takes long to import.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  (httpx's or httpx2's)
    )

    repository, _, given = name.partition("@")
    revision, failure = given or None, None
    for cached in (False, True) if download else (True,):
        try:
            if not cached:  # unlike this call, the next one has no timeout
                HfApi().repo_info(repository, revision=revision, timeout=TIMEOUT)
            return Path(
                snapshot_download(repository, revision=revision, allow_patterns=list(files), local_files_only=cached)
            )
        except (OSError, HTTPError, HFValidationError) as error:
            failure = failure or error
    raise FileNotFoundError(
        f"{key} is {name!r}, which is neither a local folder nor available from the Hugging Face hub "
        f"({type(failure).__name__}). Without network access, run `hf download {repository} --local-dir FOLDER` on "
        f"another machine, copy the folder here and set {key} to it"
    ) from failure


def is_available(repository: str, file: str) -> bool:
    """Returns whether a repository of the hub can be loaded: its `file` is in the cache, or the hub answers soon."""
    # Not at the top: it takes long to import.
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  (httpx's or httpx2's)

    if isinstance(try_to_load_from_cache(repository, file), str):
        return True
    try:
        HfApi().repo_info(repository, timeout=TIMEOUT)
    except (OSError, HTTPError):
        return False
    return True


def upload(repository: str, files: Mapping[str, Path | bytes], *, private: bool = False) -> str:
    """Commits files to a repository of the hub, which is created if it does not exist, and returns its address.

    Raises ValueError if the hub cannot be reached or does not accept them.
    """
    # Not at the top: it takes long to import.
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  (httpx's or httpx2's)
    )

    try:
        url = HfApi().create_repo(repository, private=private or None, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        HfApi().create_commit(repository, operations, commit_message="Upload an export of COPE in JAX")
    except (OSError, HTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"the Hugging Face hub did not accept {repository!r}: {reason}; use a repository of yours, and log in with "
            "`hf auth login` or set HF_TOKEN to a token that may write"
        ) from error
    return str(url)

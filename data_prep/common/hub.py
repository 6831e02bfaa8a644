"""Repositories of the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    try:
        found = snapshot_download(
            repository, revision=revision or None, allow_patterns=list(files), local_files_only=not download
        )
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{key} is {name!r}, which is neither a local folder nor available from the Hugging Face hub "
            f"({type(error).__name__}). Without network access, run `hf download {repository} --local-dir FOLDER` on "
            f"another machine, copy the folder here and set {key} to it"
        ) from error
    return Path(found)

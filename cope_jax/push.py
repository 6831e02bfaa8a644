"""Publishes an export on the Hugging Face hub: `python -m cope_jax.push --export=exports/demo --repo=owner/name`.

The repository gets the files that `Embedder.from_pretrained` reads, and the model card.
"""

from pathlib import Path

from absl import flags

from cope_jax import cli, exported
from cope_jax.model_card import CARD, REPOSITORY, UNKNOWN
from data_prep.common import hub

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("export", None, "Folder that `./run.sh export` wrote.")
    flags.DEFINE_string("repo", None, "Repository of the hub, OWNER/NAME. It is created if it does not exist.")
    flags.DEFINE_bool("private", False, "Create a repository that others cannot see.")
    flags.mark_flags_as_required(["export", "repo"])


def main() -> None:
    """Checks and uploads the export, and prints its address."""
    url = push(Path(FLAGS.export), FLAGS.repo, private=FLAGS.private)
    print(f'wrote {url}\nload it with Embedder.from_pretrained("{FLAGS.repo}")')


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Uploads an export in one commit and returns the address of its repository.

    Raises:
        FileNotFoundError: A file of the export or its card is missing.
        ValueError: The export is invalid, or the hub does not accept it.
    """
    if repository.count("/") != 1:
        raise ValueError(f"the repository is {repository!r}; it must be OWNER/NAME")
    exported.load(folder)
    if not (folder / CARD).exists():
        raise FileNotFoundError(f"{folder} lacks {CARD}, its model card: export again")
    card = (folder / CARD).read_text(encoding="utf-8").replace(REPOSITORY, repository)
    if count := card.count(UNKNOWN):
        print(f"{folder / CARD} has {count} places to fill in: {UNKNOWN}")
    paths = [path for pattern in exported.HUB_FILES for path in sorted(folder.glob(pattern))]
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    return hub.upload(repository, {**files, CARD: card.encode()}, private=private)


if __name__ == "__main__":
    define_flags()
    cli.run("push", main)

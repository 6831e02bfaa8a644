"""The program `cope`: runs a command of the package by its name.

    cope train --config=configs/demo.py --workdir=runs/demo

`python -m cope_jax` is the same program. This module imports only the standard library, so that listing the commands is
quick and a command loads no more than it needs.
"""

import gc
import os
import runpy
import sys
from importlib.util import find_spec
from typing import NamedTuple

from cope_jax import CONFIG_ROOT, __version__
from data_prep.common.interrupts import exit_on_interrupt


class Command(NamedTuple):
    """A command of `cope`."""

    target: str  # module to run as a program, followed by its first arguments, if any
    summary: str  # line for the list of commands
    extra: str = ""  # optional dependencies that the command needs, as in `pip install cope-jax[EXTRA]`


COMMANDS = {
    "demo": Command("cope_jax.end_to_end demo", "write a synthetic release, build it, train on it and evaluate"),
    "grocery": Command("cope_jax.end_to_end grocery", "the same on GroceryStoreDataset, a data set of real photos"),
    "abo": Command("data_prep.sources.abo", "make a catalog of a download of Amazon Berkeley Objects"),
    "synthetic": Command("data_prep.synthetic", "write a synthetic release"),
    "catalog": Command("data_prep.catalog", "check, join and order the text files of a release"),
    "table": Command("data_prep.table", "make the same kind of catalog from a table of your own products"),
    "segment": Command("data_prep.segment", "cut a long recording into the clips of a table", "video"),
    "download": Command("data_prep.download", "fetch the images of a catalog into tar shards", "download"),
    "build": Command("data_prep.build", "build array records from a release or a catalog", "beam"),
    "tfds build": Command("data_prep.tfds_build", "the same with the options of TFDS's own command"),
    "verify": Command("data_prep.verify", "read array records in full and report damage"),
    "inspect": Command("data_prep.inspect", "summarize a built data set as a table and an HTML page", "search"),
    "train": Command("cope_jax.train", "train a model, or resume its training"),
    "eval": Command("cope_jax.evaluate", "evaluate a run: retrieval and few-shot classification"),
    "compare": Command("cope_jax.compare", "compare the metrics of evaluated runs"),
    "mteb": Command("cope_jax.mteb_encoder", "score a run or an export on tasks of the package mteb", "mteb"),
    "checkpoints": Command("cope_jax.checkpoints", "verify checkpoints"),
    "embed": Command("cope_jax.embed", "write the embeddings of all items as Parquet"),
    "search": Command("cope_jax.search", "find similar items, by item, images or text; serve a search page", "search"),
    "export": Command("cope_jax.export", "export the weights and programs of a run, to serve without this code"),
    "push": Command("cope_jax.push", "publish an export on the Hugging Face hub"),
}


def help_text() -> str:
    """Returns the list of commands."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return "\n".join(["usage: cope COMMAND [OPTION…]", "", *lines, "", "Each command takes --help."])


def find_command(words: list[str]) -> tuple[str, list[str]]:
    """Splits the words of the command line into the name of a command and its arguments.

    Raises:
        SystemExit: They name no command.
    """
    for length in (2, 1):
        if (name := " ".join(words[:length])) in COMMANDS:
            return name, words[length:]
    if words[0] == "tfds":
        sys.exit("cope: of TFDS's commands only 'build' works without TensorFlow: cope tfds build …")
    sys.exit(f"cope: unknown command {words[0]!r}; choose one of {', '.join(COMMANDS)}")


def main() -> None:
    """Runs the command that the command line names, in this process."""
    words = sys.argv[1:]
    if not words or words[0] in ("help", "--help", "-h"):
        print(help_text())
        return
    if words[0] == "--version":
        print(f"cope-jax {__version__}")
        return
    name, arguments = find_command(words)
    command = COMMANDS[name]
    module, *first = command.target.split()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if find_spec("configs") is None:  # configs import each other
        sys.path += [*([os.getcwd()] if os.path.isdir("configs") else []), str(CONFIG_ROOT)]
    sys.argv = [sys.argv[0], *first, *arguments]
    exit_on_interrupt(name)  # until the command is imported and handles interrupts itself
    # Imports and tracing create millions of objects that stay: collecting rarely saves a fifth of the start.
    gc.set_threshold(100_000, 50, 100)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if not command.extra or find_spec((error.name or module).partition(".")[0]):
            raise
        extra = "serve" if {"serve", "--serve"} & {*arguments} else command.extra
        extra = {"av": "video", "qdrant_client": "qdrant"}.get(error.name or "", extra)
        sys.exit(f"cope: {name} needs the package {error.name}: pip install 'cope-jax[{extra}]'")


if __name__ == "__main__":
    main()

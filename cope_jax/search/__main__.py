"""Finds items like another, or like pictures and texts of one's own, with a run's model.

    python -m cope_jax.search --workdir=runs/demo                     a few items of each domain, and what is like them
    python -m cope_jax.search --workdir=runs/demo --domain=page --item=7
    python -m cope_jax.search --workdir=runs/demo --domain=video --images=0.jpg,1.jpg --text="red dress" --among=page
    python -m cope_jax.search serve --workdir=runs/demo               the same as a web page on this machine
    python -m cope_jax.search build --workdir=runs/demo --kind=hnsw   the index alone, anew

Answers are printed, and written as an HTML page with the pictures. Embeddings and index are made where there are none.
"""

from pathlib import Path

import numpy as np
from absl import flags

from cope_jax import Embedder, cli
from cope_jax.data.thumbnails import data_uri
from cope_jax.domains import DOMAINS
from cope_jax.evaluation.evaluate_run import BEST, LATEST
from cope_jax.search.embedding_store import read_manifest, write_whole
from cope_jax.search.index import KINDS
from cope_jax.search.library import Answer, Library, answer_table, open_library, others
from cope_jax.search.pages import answers_page
from cope_jax.search.server import LOCAL, listen, make_app, make_server

FLAGS = flags.FLAGS
ACTIONS = ("query", "serve", "build")


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_string("step", LATEST, f"Checkpoint: a step, {LATEST!r} or {BEST!r}.")
    flags.DEFINE_bool(
        "average", False, "Search with the moving average of the parameters, of a run with config.train.average_decay."
    )
    flags.DEFINE_string(
        "split", None, "Split to search, or several: train+test. The one that the run is evaluated on if not given."
    )
    flags.DEFINE_string("data_dir", None, "Array records to search instead of the run's own.")
    flags.DEFINE_string(
        "embeddings", None, "Folder that `embed` wrote, or to write; below eval/ of the run if not given."
    )
    flags.DEFINE_enum(
        "kind", None, list(KINDS), "Of the index, where it is built; by the number of items if not given."
    )
    flags.DEFINE_enum("domain", "page", list(DOMAINS), "What the query is.")
    flags.DEFINE_integer("item", None, "Query: the id of an item.")
    flags.DEFINE_list("images", [], "Query: image files, separated by commas, in time order.")
    flags.DEFINE_string("text", "", "Query: a title or transcript, alone or with images.")
    flags.DEFINE_list(
        "among", None, "Domains to search, separated by commas. If not given, for an item all but its own, else all."
    )
    flags.DEFINE_integer("top", 10, "How many items to find.")
    flags.DEFINE_string("html", None, "Page to write; search.html beside the embeddings if not given.")
    flags.DEFINE_bool("serve", False, "The same as the word serve.")
    flags.DEFINE_string("host", LOCAL[0], "Address to serve on. Anybody who reaches it can search.")
    flags.DEFINE_integer("port", 8000, "Port to serve on; 0 takes a free one.", lower_bound=0, upper_bound=65535)
    flags.mark_flag_as_required("workdir")


def main(*words: str) -> None:
    """Does what the word says."""
    action = "serve" if FLAGS.serve and not words else (words or ACTIONS)[0]
    if len(words) > 1 or action not in ACTIONS:
        raise ValueError(f"unknown action {' '.join(words)!r}: choose one of {', '.join(ACTIONS)}")
    step = cli.parse_step(FLAGS.step, words=(LATEST, BEST))
    library = open_library(
        Path(FLAGS.workdir),
        step=step,
        average=FLAGS.average,
        split=FLAGS.split,
        data_dir=Path(FLAGS.data_dir) if FLAGS.data_dir else None,
        embeddings=Path(FLAGS.embeddings) if FLAGS.embeddings else None,
        kind=FLAGS.kind,
        rebuild=action == "build",
    )
    if action == "serve":
        serve(library)
    elif action == "query":
        query(library)


def query(library: Library) -> None:
    """Prints the answers and writes the page."""
    answers = ask(library)
    for answer in answers:
        own = answer.query.item_id < 0
        print(f"\n{answer.query.domain} {'of your own' if own else answer.query.item_id}\n{answer_table(answer)}")
    page = Path(FLAGS.html) if FLAGS.html else library.embeddings / "search.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, answers_page(answers, f"Search among {FLAGS.workdir}").encode())
    print(f"\nwritten to {page}")


def ask(library: Library) -> list[Answer]:
    """The answers to the query of the flags, or to some of the library's items where they hold none."""
    top = FLAGS.top
    if FLAGS.item is not None and (FLAGS.images or FLAGS.text):
        raise ValueError("--item is a query, --images and --text are another: give one")
    if FLAGS.item is not None:
        return [library.by_item(FLAGS.domain, FLAGS.item, among=FLAGS.among or others(FLAGS.domain), top=top)]
    if FLAGS.images or FLAGS.text:
        shown = [data_uri(Path(image).read_bytes()) for image in FLAGS.images]
        own = (FLAGS.domain, FLAGS.images, FLAGS.text)
        return [library.by_own(embedder(library), *own, shown=shown, among=FLAGS.among or DOMAINS, top=top)]
    return [
        library.by_item(domain, item, among=FLAGS.among or others(domain), top=top)
        for domain, item in library.samples()
    ]


def embedder(library: Library) -> Embedder:
    """The model that the library's embeddings are of."""
    manifest = read_manifest(library.embeddings)
    return Embedder.from_workdir(FLAGS.workdir, step=manifest["step"], average=manifest["average"])


def serve(library: Library) -> None:
    """Serves the page until it is stopped."""
    manifest = read_manifest(library.embeddings)
    counts = ", ".join(f"{count:,} {domain}s" for domain, count in manifest["items"].items())
    model_name = f"{manifest['run']} at step {manifest['step']}" + (", averaged" if manifest["average"] else "")
    about = f"{counts} of the split {manifest['split']}, by {model_name}"
    with listen(FLAGS.host, FLAGS.port) as socket:
        port = socket.getsockname()[1]
        hosts = LOCAL if FLAGS.host in LOCAL else (*LOCAL, "*" if FLAGS.host == "0.0.0.0" else FLAGS.host)
        model = embedder(library)
        for domain in DOMAINS:  # compiles, which the first to ask would wait for
            model.embed(domain, images=[np.zeros((8, 8, 3), np.uint8)])
        app = make_app(library, model, about=about, top=FLAGS.top, hosts=hosts)
        print(f"\nsearch at http://{FLAGS.host}:{port} (Ctrl-C ends it)", flush=True)
        make_server(app).run(sockets=[socket])


if __name__ == "__main__":
    define_flags()
    cli.run("search", main, positional=True)

"""Finds items similar to an item, or to your own pictures and text, with a run's model.

    python -m cope_jax.search --workdir=runs/demo                     search for some items of each domain
    python -m cope_jax.search --workdir=runs/demo --domain=page --item=MH01
    python -m cope_jax.search --workdir=runs/demo --text="red hoodie" --where="category = 'tops' and price < 50"
    python -m cope_jax.search --workdir=runs/demo --domain=video --images=0.jpg,1.jpg --text="red dress" --among=page
    python -m cope_jax.search --workdir=runs/demo --video=clip.mp4
    python -m cope_jax.search moments --workdir=runs/demo --item=MH01   search in the recordings, for moments
    python -m cope_jax.search serve --workdir=runs/demo               serve a search page on this machine
    python -m cope_jax.search build --workdir=runs/demo --kind=hnsw   rebuild the index
    python -m cope_jax.search push --workdir=runs/demo --qdrant=http://localhost:6333   copy the items to Qdrant

Results are printed and written as an HTML page with pictures. Embeddings and index are created if they do not exist.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from cope_jax import Embedder, cli
from cope_jax.data.thumbnails import data_uri, shown_frames
from cope_jax.search.embedder import Picture
from cope_jax.search.embedding_store import read_manifest
from cope_jax.search.index import KINDS
from cope_jax.search.library import MODES, Library, SearchResult, open_library
from cope_jax.search.result_views import results_page, results_table
from data_prep.common.files import atomic_write
from data_prep.videos.reader import VideoReader

FLAGS = flags.FLAGS
ACTIONS = ("query", "moments", "serve", "build", "push")


def define_flags() -> None:
    """Defines the flags of the command."""
    cli.define_checkpoint_flags()
    flags.DEFINE_string(
        "split", None, "Split to search, or several: train+test. By default, the one that the run is evaluated on."
    )
    flags.DEFINE_string(
        "embeddings", None, "Folder of embeddings to read or write. By default, one in eval/ of the run."
    )
    flags.DEFINE_enum(
        "kind",
        None,
        list(KINDS),
        "Kind of index. By default, that of the existing index; a new one depends on the size.",
    )
    flags.DEFINE_string("domain", None, "Domain of the query. By default, the first one.")
    flags.DEFINE_string("item", None, "Query: id of an item.")
    flags.DEFINE_list("images", [], "Query: image files, separated by commas, in time order.")
    flags.DEFINE_string("video", None, "Query: a video file, instead of images.")
    flags.DEFINE_string("text", "", "Query: a title or transcript, alone or with images.")
    flags.DEFINE_list("among", None, "Domains to search, separated by commas; by default, all but an item's own.")
    flags.DEFINE_enum(
        "mode", None, list(MODES), "Search by vectors (dense), words, or both. By default, hybrid for a text alone."
    )
    flags.DEFINE_string("where", "", "Filter, in SQL: \"category = 'shoes' and price < 50\".")
    flags.DEFINE_integer("top", 10, "Number of items to find.")
    flags.DEFINE_string("html", None, "Page to write. By default, search.html next to the embeddings.")
    flags.DEFINE_string("videos", None, "Folder with the videos, to play them. Their names are paths in it, or URLs.")
    flags.DEFINE_bool("serve", False, "The same as the action serve.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to serve on, IPv4 or IPv6. Anyone who can reach it can search.")
    flags.DEFINE_list(
        "allow_host", [], "Other names and addresses of this machine that users enter; required by --host=0.0.0.0."
    )
    flags.DEFINE_string("qdrant", "http://localhost:6333", "Address of the Qdrant server to copy to.")
    flags.DEFINE_string("collection", None, "Prefix of Qdrant's collections, which are replaced; the run's name.")
    flags.DEFINE_integer("port", 8000, "Port to serve on; 0 takes a free one.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("api_key_file", None, "File with a key that requests to the API must have; without the page.")
    flags.mark_flag_as_required("workdir")


def main(*words: str) -> None:
    """Runs the action."""
    action = "serve" if FLAGS.serve and not words else (words or ACTIONS)[0]
    if len(words) > 1 or action not in ACTIONS:
        raise ValueError(f"unknown action {' '.join(words)!r}: choose one of {', '.join(ACTIONS)}")
    video_folder()  # fails before the work starts
    if action == "serve":
        serve()
        return
    library = open_run(rebuild=action == "build")
    if action == "moments":
        restrict_to_recordings(library)
    if action in ("query", "moments"):
        query(library)
    if action == "push":
        push(library)


def open_run(*, rebuild: bool = False) -> Library:
    """Opens the library of the run in the flags."""
    return open_library(
        Path(FLAGS.workdir),
        step=cli.parse_step(FLAGS.step),
        average=FLAGS.average,
        split=FLAGS.split,
        data_dir=Path(FLAGS.data_dir) if FLAGS.data_dir else None,
        embeddings=Path(FLAGS.embeddings) if FLAGS.embeddings else None,
        kind=FLAGS.kind,
        rebuild=rebuild,
    )


def query(library: Library) -> None:
    """Prints the results and writes the page."""
    results = search(library)
    for result in results:
        name = "of your own" if result.query.item_id is None else result.query.item_id
        print(f"\n{result.query.domain} {name}\n{results_table(result)}")
        if not result.similar:
            print("nothing similar: right answers are almost always more similar than these items")
    page = Path(FLAGS.html) if FLAGS.html else library.embeddings / "search.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(page, "w") as file:
        file.write(results_page(results, f"Search among {FLAGS.workdir}", video_folder()))
    print(f"\nwritten to {page}")


def restrict_to_recordings(library: Library) -> None:
    """Sets the flags so that only segments of recordings are found."""
    if not (recorded := library.recorded_domains()):
        raise ValueError("no item has a start and an end: cut recordings with `python -m data_prep.segment`")
    FLAGS.among = [domain for domain in FLAGS.among or recorded if domain in recorded] or recorded
    FLAGS.where = "start IS NOT NULL" + (f" AND ({FLAGS.where})" if FLAGS.where.strip() else "")


def video_folder() -> Path | None:
    """Returns the folder with the videos in the flags."""
    if FLAGS.videos and not Path(FLAGS.videos).is_dir():
        raise ValueError(f"--videos={FLAGS.videos} is not a folder")
    return Path(FLAGS.videos) if FLAGS.videos else None


def search(library: Library) -> list[SearchResult]:
    """Searches for the query in the flags or, without one, for some items of the library."""
    clips = [name for name, items in library.records.items.items() if items.kind == "clip"]
    domain = FLAGS.domain or next(iter(clips if FLAGS.video else ()), library.domains[0])
    options = {"top": FLAGS.top, "where": FLAGS.where}
    if FLAGS.item is not None and (FLAGS.images or FLAGS.text or FLAGS.video):
        raise ValueError("--item is one query, --images or --video and --text are another: give one of them")
    if FLAGS.images and FLAGS.video:
        raise ValueError("--images and --video are both given: choose one of them")
    if FLAGS.item is not None:
        among = FLAGS.among or library.other_domains(domain)
        return [library.search_item(domain, FLAGS.item, among=among, **options)]
    if FLAGS.images or FLAGS.text or FLAGS.video:
        pictures, thumbnails = query_pictures()
        own = (None if FLAGS.mode == "words" else load_embedder(library), domain, pictures, FLAGS.text)
        options |= {"thumbnails": thumbnails, "among": FLAGS.among, "mode": FLAGS.mode}
        return [library.search_own(*own, **options)]
    return [
        library.search_item(domain, item, among=FLAGS.among or library.other_domains(domain), **options)
        for domain, item in library.samples()
    ]


def query_pictures() -> tuple[Sequence[Picture], list[str]]:
    """Returns the pictures of the query in the flags, or the frames of its video, and thumbnails of them."""
    if not FLAGS.video:
        return FLAGS.images, [data_uri(Path(image).read_bytes()) for image in FLAGS.images]
    with VideoReader(processes=1) as reader:
        frames = reader.read(FLAGS.video).frames
    return frames, [data_uri(frame) for frame in shown_frames(frames)]


def load_embedder(library: Library) -> Embedder:
    """Loads the model that made the library's embeddings."""
    manifest = read_manifest(library.embeddings)
    return Embedder.from_workdir(FLAGS.workdir, step=manifest["step"], average=manifest["average"])


def push(library: Library) -> None:
    """Copies the library to Qdrant and prints the names of the collections."""
    from cope_jax.search import qdrant  # needs the extra "qdrant"

    collection = FLAGS.collection or read_manifest(library.embeddings)["run"]
    counts = qdrant.push(library, FLAGS.qdrant, collection=collection, api_key=os.environ.get("QDRANT_API_KEY"))
    print("\n".join(f"{FLAGS.qdrant} has {count:,} points in {name}" for name, count in counts.items()))


def read_api_key(path: Path) -> str:
    """Returns the key in a file; raises ValueError if it is not one that a header can have."""
    if not re.fullmatch(r"[!-~]{16,}", key := path.read_text(encoding="ascii", errors="replace").strip()):
        raise ValueError(f"--api_key_file={path} must contain one key of 16 or more ASCII characters without spaces")
    return key


def serve() -> None:
    """Serves the search page until the process is stopped."""
    from cope_jax.search.server import allowed_hosts, listen, make_app, make_server  # needs the extra "serve"

    api_key = read_api_key(Path(FLAGS.api_key_file)) if FLAGS.api_key_file else ""
    with listen(FLAGS.host, FLAGS.port) as socket:
        hosts = allowed_hosts(FLAGS.host, socket, FLAGS.allow_host)
        library = open_run()
        manifest = read_manifest(library.embeddings)
        counts = ", ".join(f"{count:,} {domain} items" for domain, count in manifest["items"].items())
        model_name = f"{manifest['run']} at step {manifest['step']}" + (", averaged" if manifest["average"] else "")
        about = f"{counts} of the split {manifest['split']}, by {model_name}"
        embedder = load_embedder(library)
        embedder.warm_up(*library.domains, batch_size=1)  # queries are single items
        options = {"about": about, "top": FLAGS.top, "hosts": hosts, "videos": video_folder(), "api_key": api_key}
        app = make_app(library, embedder, **options)
        path = "/api/openapi.json" if api_key else ""
        print(f"\nsearch at http://{hosts[0]}:{socket.getsockname()[1]}{path} (stop with Ctrl-C)", flush=True)
        make_server(app).run(sockets=[socket])


if __name__ == "__main__":
    define_flags()
    cli.run("search", main, positional=True)

"""Scores a run or an export on tasks of the package `mteb`: `python -m cope_jax.mteb_encoder --workdir=runs/abo`.

The package loads the data, ranks by cosine similarity and computes the metrics; this project only embeds. Published
weights are scored without training from the work directory that `eval --zero_shot` makes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import mteb
import numpy as np
from absl import flags
from datasets import Dataset, Image, Video
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction

from cope_jax import __version__, cli
from cope_jax.search.embedder import Embedder

FLAGS = flags.FLAGS
MODALITIES = ("video", "image", "text")  # the first that an item has chooses its domain
SHOWN = ("hit_rate_at_1", "hit_rate_at_5", "hit_rate_at_10", "map_at_1000", "ndcg_at_10")


class MtebEncoder(AbsEncoder):
    """A model of this project in the interface of `mteb`.

        mteb.evaluate(MtebEncoder(Embedder.from_workdir("runs/abo"), "abo"), mteb.get_tasks(["ABOI2VRetrieval"]))

    Args:
        embedder: The model.
        name: Name of the model in the results.
        domains: Domain that items with a video, an image, or nothing but a text are embedded as. By default, videos
            are of the first domain of clips, images and texts of the first domain of images.
    """

    def __init__(self, embedder: Embedder, name: str, domains: Mapping[str, str] | None = None) -> None:
        kinds = embedder.config.data.domains
        first = {kind: domain for domain, kind in reversed(kinds.items())}
        any_domain = next(iter(kinds))
        image = first.get("image", any_domain)
        self.embedder = embedder
        self.domains = {"video": first.get("clip", any_domain), "image": image, "text": image, **(domains or {})}
        for modality, domain in self.domains.items():
            if modality not in MODALITIES or domain not in kinds:
                raise ValueError(
                    f"--domains has {modality}:{domain}; expected one of {', '.join(MODALITIES)}, and one of the "
                    f"run's domains, {', '.join(kinds)}"
                )
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"cope-jax/{name}",
                "revision": __version__,
                "embed_dim": embedder.config.model.embedding,
                "similarity_fn_name": ScoringFunction.COSINE,
                "modalities": list(MODALITIES),
            }
        )

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        """Embeds the items of a DataLoader of `mteb`: float32[N, E] of unit length.

        Its data set is read without torch, and images and videos with their encoded bytes, so that they are decoded,
        and frames chosen, as in evaluation.
        """
        data: Dataset = inputs.dataset
        for name, feature in data.features.items():
            if isinstance(feature, Image | Video):
                data = data.cast_column(name, type(feature)(decode=False))
        batches = (self._encode(batch) for batch in data.iter(self.embedder.config.eval.batch_size))
        return np.concatenate([np.zeros((0, self.embedder.config.model.embedding), np.float32), *batches])

    def _encode(self, batch: Any) -> np.ndarray:
        modality = next((name for name in MODALITIES if name in batch), None)
        if modality is None:
            raise ValueError(f"items have {', '.join(batch)}, but a model reads {', '.join(MODALITIES)}")
        media = {"images": batch["image"]} if modality == "image" else {"frames": batch.get("video")}
        pictures: dict[str, Any] = {
            key: column and [_content(value) for value in column] for key, column in media.items()
        }
        return self.embedder.embed(self.domains[modality], texts=batch.get("text"), **pictures)


def _content(value: Any) -> Any:
    """Returns the bytes or the path of an undecoded image or video; a list of frames as it is."""
    return (value["bytes"] or value["path"]) if isinstance(value, dict) else value


def score(model: Any, tasks: Iterable[Any], out: Path) -> str:
    """Scores a model, writes a JSON file per task, and returns a line per task, split and subset with `SHOWN`."""
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    # The package looks at the first video, which would take torchcodec and the libraries of FFmpeg to decode.
    with mock.patch.object(Video, "decode_example", lambda _, value, **__: value):
        results = mteb.evaluate(model, tasks, cache=None, co2_tracker=False).task_results
    for result in results:
        result.to_disk(out / f"{result.task_name}.json")
        for split, subsets in result.scores.items():
            for scores in subsets:
                shown = ", ".join(f"{name} {scores[name]:.3f}" for name in SHOWN if name in scores)
                lines.append(f"{result.task_name} {split} {scores['hf_subset']}: {shown or scores['main_score']}")
    return "\n".join(lines)


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("workdir", None, "Work directory of the run.")
    flags.DEFINE_string("export", None, "Folder of an export, instead of a run.")
    flags.DEFINE_string("step", cli.LATEST, "Checkpoint of the run: a step, latest or best; 0 is the untrained model.")
    flags.DEFINE_bool("average", False, "Use the moving average of the parameters.")
    flags.DEFINE_list("tasks", ["ABOI2VRetrieval"], "Names of the tasks; their data is downloaded.")
    flags.DEFINE_list("domains", [], "Domains of videos, images and texts, such as video:spin,image:page.")
    flags.DEFINE_string("out", None, "Folder for the results. Default: mteb/ in the work directory or the export.")


def main() -> None:
    """Scores the model and prints the results."""
    source = FLAGS.export or FLAGS.workdir
    if not source or (FLAGS.export and FLAGS.workdir):
        raise ValueError("expected either --workdir, the folder of a run, or --export, that of an export")
    step = cli.parse_step(FLAGS.step)
    embedder = (
        Embedder.from_export(source) if FLAGS.export else Embedder.from_workdir(source, step, average=FLAGS.average)
    )
    if wrong := [word for word in FLAGS.domains if ":" not in word]:
        raise ValueError(f"--domains has {wrong[0]!r}; expected pairs such as video:spin,image:page")
    domains = dict(word.split(":", 1) for word in FLAGS.domains)
    model = MtebEncoder(embedder, Path(source).absolute().name, domains)
    try:
        tasks = mteb.get_tasks(FLAGS.tasks)
    except KeyError as error:
        raise ValueError(f"--tasks names {', '.join(FLAGS.tasks)}: {error.args[0]}") from error
    out = Path(FLAGS.out or Path(source) / "mteb")
    print(f"{score(model, tasks, out)}\nwritten to {out}")


if __name__ == "__main__":
    define_flags()
    cli.run("mteb", main)

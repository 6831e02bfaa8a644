"""Outputs of frozen encoders for all training items, computed once and kept in the work directory."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cope_jax.data.collate import ItemFeatures
from cope_jax.data.records import InvalidItems, fingerprint, open_records
from cope_jax.evaluation.embed_items import LoadedRun
from cope_jax.models.cope import MODEL_INPUTS
from cope_jax.parallel.mesh import batch_sharding, replicated, to_devices
from cope_jax.parallel.processes import barrier
from cope_jax.runs.checkpoints import ModelState
from cope_jax.runs.config_file import FEATURES
from data_prep.common.files import atomic_folder
from data_prep.common.progress import Progress

FINGERPRINT = "data.txt"


def cached_features(
    run: LoadedRun, graphdef: nnx.GraphDef, model: ModelState, workdir: Path
) -> dict[str, ItemFeatures]:
    """Returns what the frozen encoders of a run on its training split give for all items, by domain.

    Items are read as in evaluation: no random crops, frames in the middles of segments. Items that cannot be read have
    no inputs. All processes must call this.
    """
    data, folder = run.config.data, workdir / FEATURES
    content = fingerprint(data.data_dir, data.eval_split)
    if jax.process_index() == 0 and folder.exists() and (folder / FINGERPRINT).read_text() != content:
        shutil.rmtree(folder)
    barrier("features")
    if not folder.exists():
        found = {domain: _encode(run, graphdef, model, domain) for domain in data.domains}
        barrier("encoded")  # before one of them writes
        if jax.process_index() == 0:
            with atomic_folder(folder) as temporary:
                (temporary / FINGERPRINT).write_text(content)
                for domain, features in found.items():
                    for name, array in features._asdict().items():
                        np.save(temporary / f"{domain}-{name}.npy", array)
        barrier("features")
    return {
        domain: ItemFeatures(
            *(np.load(folder / f"{domain}-{name}.npy", mmap_mode="r") for name in ItemFeatures._fields)
        )
        for domain in data.domains
    }


def _encode(run: LoadedRun, graphdef: nnx.GraphDef, model: ModelState, domain: str) -> ItemFeatures:
    """Runs the encoders on all items of a domain."""

    def encode(model: ModelState, batch: Any) -> ItemFeatures:
        (own,) = nnx.merge(graphdef, *model).features(batch).values()
        has_text = own.word_mask.any(-1) & (own.text is not None)
        text = jnp.zeros((len(has_text), 1)) if own.text is None else own.text.vector
        return ItemFeatures(own.vision.vector, text, jnp.stack([own.frame_mask.any(-1), has_text], axis=-1))

    compiled = jax.jit(
        encode,
        in_shardings=(jax.tree.map(lambda leaf: leaf.sharding, model), batch_sharding(run.mesh)),
        out_shardings=replicated(run.mesh),
    )
    count = len(open_records(run.config.data.data_dir, run.config.data.eval_split).items[domain])
    parts = []
    with Progress(desc=f"encoding {domain}", total=count, unit="items") as progress:
        for batch in run.batches(domain, invalid_items=InvalidItems()):
            inputs = {name: batch[domain][name] for name in MODEL_INPUTS}
            parts.append(jax.tree.map(np.asarray, compiled(model, {domain: to_devices(inputs, run.mesh)})))
            progress.update(min(len(parts[-1].vision), count - progress.n))
    return ItemFeatures(*(np.concatenate(arrays)[:count] for arrays in zip(*parts, strict=True)))

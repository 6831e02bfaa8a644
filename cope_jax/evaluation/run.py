"""Evaluates a checkpoint of a work directory, which is all it needs."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cope_jax.data.tokenizer import load_tokenizer
from cope_jax.domains import DOMAINS
from cope_jax.evaluation import few_shot, retrieval
from cope_jax.evaluation.embed import embed_function, embed_items
from cope_jax.evaluation.report import collect, write_metrics
from cope_jax.training.checkpoints import Checkpoints, load_model
from cope_jax.training.config import load_config
from cope_jax.training.inputs import evaluation_batches
from cope_jax.training.loop import check_batch_sizes
from cope_jax.training.mesh import make_mesh


def evaluate(
    workdir: Path, *, step: int | None = None, data_dir: Path | None = None, reuse: bool = False
) -> dict[str, Any]:
    """Retrieval and few-shot metrics of a checkpoint, also written to `eval/<step>/metrics.json`.

    Args:
        workdir: of a training run.
        step: of the checkpoint; None is the newest, 0 the untrained model.
        data_dir: array records to use instead of those of the run's config.
        reuse: whether metrics that are there, of the same step, data and settings, are taken as they are.

    Returns:
        The metrics as `evaluation.report.collect` lays them out, and under "evaluated" what they are of.

    Raises:
        FileNotFoundError: no such work directory, checkpoint or array records; for step 0 also: no such weights.
        ValueError: the data lack the split, or the embeddings are broken.
    """
    config = load_config(workdir)
    if data_dir is not None:
        with config.unlocked():
            config.data.data_dir = str(data_dir.absolute())
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.newest() if step is None else step
        evaluated = {
            "data_dir": config.data.data_dir,
            "split": config.data.eval_split,
            **config.eval.to_dict(),
        }
        known = known_metrics(workdir, step) if reuse else None
        if known is not None and known["evaluated"] == evaluated:
            return known
        embeddings = embed_split(config, workdir, checkpoints, step)
    metrics = collect(
        retrieval.six_directions(embeddings),
        few_shot.six_directions(
            embeddings,
            ways=config.eval.ways,
            shots=config.eval.shots,
            queries=config.eval.queries,
            episodes=config.eval.episodes,
            seed=config.seed,
        ),
        step=step,
    )
    metrics["evaluated"] = evaluated
    if jax.process_index() == 0:
        write_metrics(metrics_path(workdir, step), metrics)
    return metrics


def embed_split(
    config: ConfigDict, workdir: Path, checkpoints: Checkpoints, step: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per domain the embeddings float32[N, E] and products int32[N, M] of all items of the evaluation split."""
    mesh = make_mesh(**config.mesh)
    check_batch_sizes(config, mesh)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    graphdef, model = load_model(config, checkpoints, step, mesh, vocab_size=len(tokenizer))
    embed = embed_function(graphdef, jax.tree.map(lambda leaf: leaf.sharding, model), mesh)
    embeddings = {}
    for domain in DOMAINS:
        batches = evaluation_batches(config, tokenizer, domain=domain, batch_size=config.eval.batch_size)
        embeddings[domain] = embed_items(batches, domain, embed, model, mesh)
        print(f"step {step}: embedded {len(embeddings[domain][0])} {domain} items", flush=True)
    return embeddings


def metrics_path(workdir: Path, step: int) -> Path:
    """Where the metrics of a step are kept."""
    return workdir / "eval" / str(step) / "metrics.json"


def known_metrics(workdir: Path, step: int) -> dict[str, Any] | None:
    """The metrics that an earlier evaluation wrote, or None."""
    path = metrics_path(workdir, step)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

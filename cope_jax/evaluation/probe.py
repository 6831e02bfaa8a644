"""Evaluates the model during training, on some products of the evaluation split."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cope_jax.data.records import InvalidItems, open_records
from cope_jax.evaluation.embed_items import LoadedRun, check_whole_processes
from cope_jax.evaluation.evaluate_run import draw_products, embeddings_of, rows_by_domain
from cope_jax.evaluation.metrics import retrieval
from cope_jax.runs.checkpoints import ModelState
from data_prep.common.domains import domain_pairs


class ProbeResult(NamedTuple):
    """Result of evaluating a model during training."""

    metrics: dict[str, float]  # "mean_r1", …; "p2v_r1", … of directions with results; "bad_items", the number skipped
    samples: dict[str, np.ndarray]  # for histograms: entries of embeddings, similarities of positives


class Probe:
    """Evaluates a model on the same products every time.

    Items that cannot be read are skipped and reported: they must not end a run, nor keep it from starting.
    """

    def __init__(self, run: LoadedRun):
        """Draws the products for a run, whose model may be shapes with shardings.

        Raises:
            FileNotFoundError: Array records are missing.
            ValueError: The data lack the split, or the mesh axis "tensor" spans processes.
        """
        check_whole_processes(run.mesh, "set config.train.evaluate_every to 0")
        self.run, config = run, run.config
        products = open_records(config.data.data_dir, config.data.eval_split).products
        self.invalid_items = InvalidItems()
        drawn = draw_products(config, min(config.train.evaluate_products, len(products)), self.invalid_items)
        self.rows = rows_by_domain(drawn, config.data.domains)
        for source, target in domain_pairs(config.data.domains):
            if not any(len(own.rows[source]) and len(own.rows[target]) > (source == target) for own in drawn):
                what = f"both {source} and {target} items" if source != target else f"two {source} items"
                print(f"no R@1 of {source} and {target} during training: none of {len(drawn)} products has {what}")

    def __call__(self, model: ModelState, on_batch: Callable[[], None]) -> ProbeResult:
        """Evaluates a model, calling `on_batch` after each batch. All processes must call this and get the same result.

        Directions without a query that has a positive are left out. Raises ValueError if all embeddings of a domain are
        invalid.
        """
        run = replace(self.run, model=model)
        items = {
            domain: run.embed_rows(domain, self.rows[domain], lambda _: on_batch(), self.invalid_items)
            for domain in run.config.data.domains
        }
        skipped = sum(len(self.rows[domain]) - len(own.rows) for domain, own in items.items())
        ranks = retrieval.direction_ranks(embeddings_of(items))
        directions = retrieval.direction_metrics(ranks)
        r1 = {f"{name}_r1": float(own["r1"]) for name, own in directions.items()}
        embeddings = {f"embeddings/{domain}": own.vectors for domain, own in items.items()}
        positives = {f"positives/{name}": own.scores for name, own in ranks.items() if name in directions}
        metrics = retrieval.direction_means(directions) | r1 | {"bad_items": float(skipped)}
        return ProbeResult(metrics, embeddings | positives)

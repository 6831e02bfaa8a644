"""Evaluates the model during training, on some products of the evaluation split."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from cope_jax.data.bad_items import Faults
from cope_jax.data.records import open_records
from cope_jax.domains import DOMAINS, PAIRS
from cope_jax.evaluation.embed_items import embed_function
from cope_jax.evaluation.evaluate_run import draw_products, rows_by_domain
from cope_jax.evaluation.loaded_run import LoadedRun
from cope_jax.evaluation.metrics import retrieval
from cope_jax.parallel.mesh import batch_share
from cope_jax.runs.config import RunConfig
from cope_jax.runs.model import ModelState


@dataclass(frozen=True)
class ProbeResult:
    """Result of evaluating a model during training.

    Attributes:
        metrics: "mean_r1", …; R@1 of each direction, "p2v_r1", …; and "bad_items", the number of items skipped.
        samples: Values for histograms: all entries of the embeddings of each domain, and the similarities of the
            positive pairs of each direction.
    """

    metrics: dict[str, float]
    samples: dict[str, np.ndarray]


class Probe:
    """Evaluates a model on the same products every time.

    Items that cannot be read are skipped and reported: they must not end a run, nor keep it from starting.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerFast,
        mesh: Mesh,
        graphdef: nnx.GraphDef,
        model: ModelState,
    ):
        """Draws the products.

        Args:
            config: Config of the run.
            tokenizer: Its tokenizer.
            mesh: Mesh of the model.
            graphdef: Static structure of the model.
            model: Its shapes with shardings.

        Raises:
            FileNotFoundError: Array records are missing.
            ValueError: The data lack the split, the products have no items in both domains of a pair, or a mesh axis
                spans processes.
        """
        if batch_share(mesh) != (jax.process_index(), jax.process_count()):
            raise ValueError(
                f"config.mesh.tensor={config.mesh.tensor} spans processes, which evaluation does not support; lower "
                "it, or set config.train.evaluate_every to 0"
            )
        products = open_records(config.data.data_dir, config.data.eval_split).products
        self.faults = Faults()
        drawn = draw_products(config, min(config.train.evaluate_products, len(products)), self.faults)
        self.rows = rows_by_domain(drawn)
        for a, b in PAIRS:
            if not any(len(product.rows[a]) and len(product.rows[b]) for product in drawn):
                raise ValueError(
                    f"none of {len(drawn)} random products of the split {config.data.eval_split!r} has both a {a} "
                    f"and a {b}; raise config.train.evaluate_products, or set config.train.evaluate_every to 0"
                )
        embed = embed_function(graphdef, jax.tree.map(lambda leaf: leaf.sharding, model), mesh)
        self.run = LoadedRun(config, tokenizer, mesh, embed, model)

    def __call__(self, model: ModelState, on_batch: Callable[[], None]) -> ProbeResult:
        """Evaluates a model. All processes must call this, and each gets the same result.

        Args:
            model: A model with the shapes and shardings of the first one.
            on_batch: Called after each batch.

        Raises:
            ValueError: All embeddings of a domain are invalid, or no query of a direction has a positive.
        """
        run = replace(self.run, model=model)
        items = {
            domain: run.embed_rows(domain, self.rows[domain], lambda _: on_batch(), self.faults) for domain in DOMAINS
        }
        skipped = sum(len(self.rows[domain]) - len(own.rows) for domain, own in items.items())
        ranks = retrieval.direction_ranks({domain: (own.vectors, own.products) for domain, own in items.items()})
        directions = retrieval.direction_metrics(ranks)
        r1 = {f"{name}_r1": float(own["r1"]) for name, own in directions.items()}
        embeddings = {f"embeddings/{domain}": own.vectors for domain, own in items.items()}
        positives = {f"positives/{name}": own.scores for name, own in ranks.items()}
        metrics = retrieval.direction_means(directions) | r1 | {"bad_items": float(skipped)}
        return ProbeResult(metrics, embeddings | positives)

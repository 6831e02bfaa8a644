"""Looks at the model of a run while it trains: how well it finds some products of the evaluation split."""

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
from cope_jax.evaluation.evaluate_run import drawn_products, rows_of
from cope_jax.evaluation.loaded_run import LoadedRun
from cope_jax.evaluation.metrics import retrieval
from cope_jax.evaluation.result_tables import means
from cope_jax.parallel.mesh import batch_share
from cope_jax.runs.config import RunConfig
from cope_jax.runs.model import ModelState


@dataclass(frozen=True)
class Sight:
    """What a look at a model found.

    Attributes:
        metrics: "mean_r1", …, and the same of each direction: "p2v_r1", …; "bad_items", the number of those left out.
        samples: numbers that make histograms, by name: all entries of the embeddings of each domain, and the
            similarities of pairs that belong together, of each direction.
    """

    metrics: dict[str, float]
    samples: dict[str, np.ndarray]


class Probe:
    """The compiled model and the items that it is judged by, the same ones every time.

    Those that cannot be read are left out and named: they shall not end a run, nor each start of it.
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
            model: its shapes, with shardings.

        Raises:
            FileNotFoundError: array records are missing.
            ValueError: the data lack the split, the products cannot be searched for, or the mesh does not fit.
        """
        if batch_share(mesh) != (jax.process_index(), jax.process_count()):
            raise ValueError(
                f"config.mesh.tensor={config.mesh.tensor} joins processes, which evaluation cannot; lower it, or set "
                "config.train.evaluate_every to 0"
            )
        every = open_records(config.data.data_dir, config.data.eval_split).products
        self.faults = Faults()
        drawn = drawn_products(config, min(config.train.evaluate_products, len(every)), self.faults)
        self.rows = rows_of(drawn)
        for a, b in PAIRS:
            if not any(len(product.rows[a]) and len(product.rows[b]) for product in drawn):
                raise ValueError(
                    f"none of {len(drawn)} random products of the split {config.data.eval_split!r} has both a {a} "
                    f"and a {b}; raise config.train.evaluate_products, or set config.train.evaluate_every to 0"
                )
        embed = embed_function(graphdef, jax.tree.map(lambda leaf: leaf.sharding, model), mesh)
        self.run = LoadedRun(config, tokenizer, mesh, embed, model)

    def __call__(self, model: ModelState, between: Callable[[], None]) -> Sight:
        """Looks at a model; all processes take part and find the same.

        Args:
            model: laid out as the shapes were.
            between: called behind each batch.

        Raises:
            ValueError: all embeddings of a domain are broken, or no item that could be read belongs to another one.
        """
        run = replace(self.run, model=model)
        items = {domain: run.items(domain, self.rows[domain], lambda _: between(), self.faults) for domain in DOMAINS}
        bad = sum(len(self.rows[domain]) - len(own.rows) for domain, own in items.items())
        ranks = retrieval.direction_ranks({name: (own.vectors, own.products) for name, own in items.items()})
        directions = retrieval.direction_metrics(ranks)
        each = {f"{name}_r1": float(found["r1"]) for name, found in directions.items()}
        entries = {f"embeddings/{domain}": own.vectors for domain, own in items.items()}
        positives = {f"positives/{name}": of_direction.scores for name, of_direction in ranks.items()}
        return Sight(means(directions) | each | {"bad_items": float(bad)}, entries | positives)

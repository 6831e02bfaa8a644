"""A loaded and compiled checkpoint of a run, which embeds rows of its records."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from cope_jax.data.bad_items import Faults
from cope_jax.data.tokenizer import load_tokenizer
from cope_jax.evaluation.embed_items import EmbedFunction, Items, embed_function, embed_items
from cope_jax.parallel.mesh import make_mesh
from cope_jax.runs.checkpoints import Checkpoints, load_model
from cope_jax.runs.config import RunConfig
from cope_jax.runs.inputs import check_batch_sizes, evaluation_batches
from cope_jax.runs.model import ModelState


@dataclass(frozen=True)
class LoadedRun:
    """The model of a checkpoint with its tokenizer and mesh; the config says which records it reads."""

    config: RunConfig
    tokenizer: PreTrainedTokenizerFast
    mesh: Mesh
    embed: EmbedFunction
    model: ModelState

    def embed_rows(
        self,
        domain: str,
        rows: Sequence[int] | np.ndarray,
        on_batch: Callable[[int], object] | None = None,
        faults: Faults | None = None,
    ) -> Items:
        """Embeds rows of a domain. All hosts must call this, and each gets all items.

        Args:
            domain: Domain of the items.
            rows: Rows of the items.
            on_batch: Called after each batch with its number of items.
            faults: Collects items that cannot be read or embedded, which are skipped. Without it, they are errors.
        """
        batches = evaluation_batches(
            self.config,
            self.tokenizer,
            domain=domain,
            batch_size=self.config.eval.batch_size,
            rows=np.asarray(rows).tolist(),
            faults=faults,
        )
        remaining = len(rows)

        def count(batch_size: int) -> None:
            nonlocal remaining
            items = min(batch_size, remaining)  # the last batch is padded
            remaining -= items
            if on_batch:
                on_batch(items)

        return embed_items(batches, domain, self.embed, self.model, self.mesh, count, faults)


def load_run(
    config: RunConfig, workdir: Path, checkpoints: Checkpoints, step: int, *, average: bool = False
) -> LoadedRun:
    """Loads a checkpoint of a work directory, or the moving average of its parameters.

    Raises:
        FileNotFoundError: There is no such checkpoint, or no initial weights for step 0.
        ValueError: Batches cannot be divided among the devices, or there is no average.
    """
    mesh = make_mesh(**asdict(config.mesh))
    check_batch_sizes(config, mesh)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    graphdef, model = load_model(config, checkpoints, step, mesh, vocab_size=len(tokenizer), average=average)
    embed = embed_function(graphdef, jax.tree.map(lambda leaf: leaf.sharding, model), mesh)
    return LoadedRun(config, tokenizer, mesh, embed, model)

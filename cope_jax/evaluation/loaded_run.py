"""A checkpoint of a run, loaded and compiled: turns rows of the records into embedded items."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
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
    """The model of a step with all that it needs; the config says which records and split are read."""

    config: RunConfig
    tokenizer: PreTrainedTokenizerFast
    mesh: Mesh
    embed: EmbedFunction
    model: ModelState

    def items(
        self,
        domain: str,
        rows: Sequence[int],
        report: Callable[[int], None] | None = None,
        faults: Faults | None = None,
    ) -> Items:
        """Embeds some rows of a domain; all hosts take part and get all.

        Args:
            domain, rows: of the items.
            report: told of each batch how many items it has.
            faults: takes note of items that cannot be read or embedded, which are then left out; without it, such a
                one is an error.
        """
        batches = evaluation_batches(
            self.config, self.tokenizer, domain=domain, batch_size=self.config.eval.batch_size, rows=rows, faults=faults
        )
        return embed_items(batches, domain, self.embed, self.model, self.mesh, report, faults)


def load_run(
    config: RunConfig, workdir: Path, checkpoints: Checkpoints, step: int, *, average: bool = False
) -> LoadedRun:
    """Loads a step of a work directory, or the moving average of its parameters.

    Raises:
        FileNotFoundError: no such step; for step 0 also: no such weights to start from.
        ValueError: batches do not divide over the devices, or there is no average.
    """
    mesh = make_mesh(**asdict(config.mesh))
    check_batch_sizes(config, mesh)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    graphdef, model = load_model(config, checkpoints, step, mesh, vocab_size=len(tokenizer), average=average)
    embed = embed_function(graphdef, jax.tree.map(lambda leaf: leaf.sharding, model), mesh)
    return LoadedRun(config, tokenizer, mesh, embed, model)

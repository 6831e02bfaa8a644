"""Embeds items of the records with a checkpoint of a run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from cope_jax.data.records import InvalidItemError, InvalidItems
from cope_jax.data.tokenizer import load_tokenizer
from cope_jax.models.cope import MODEL_INPUTS
from cope_jax.parallel.mesh import batch_sharding, batch_share, make_mesh, replicated, to_devices
from cope_jax.parallel.processes import allgather
from cope_jax.runs.checkpoints import Checkpoints, ModelState
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_validation import replace_fields
from cope_jax.runs.inputs import evaluation_batches
from cope_jax.runs.model import load_model

Batch = dict[str, Any]
EmbedFunction = Callable[[ModelState, Batch], jax.Array]
T = TypeVar("T")


@dataclass(frozen=True)
class Items:
    """Embedded items of a domain, in the requested order."""

    vectors: np.ndarray  # float32[N, E] of unit length
    products: np.ndarray  # int32[N, M] ids of their products, padded with -1
    rows: np.ndarray  # int64[N] rows in the domain's records
    item_ids: np.ndarray  # int64[N]
    frames: np.ndarray  # int32[N] number of frames of each item
    has_text: np.ndarray  # bool[N]
    masked: np.ndarray | None = None  # float32[N, 2, E], of the frames alone and of the text alone, 0 if missing

    def select(self, mask: np.ndarray) -> "Items":
        """Returns the items where a mask is true."""
        columns: dict[str, Any] = {name: own if own is None else own[mask] for name, own in vars(self).items()}
        return Items(**columns)


def no_items(width: int, *, masked: bool) -> Items:
    """Returns zero items with embeddings of a width."""
    numbers, flags = np.zeros(0, np.int64), np.zeros(0, bool)
    return Items(
        np.zeros((0, width), np.float32),
        np.zeros((0, 1), np.int32),
        numbers,
        numbers,
        numbers.astype(np.int32),
        flags,
        np.zeros((0, 2, width), np.float32) if masked else None,
    )


@dataclass(frozen=True)
class LoadedRun:
    """A loaded checkpoint with its tokenizer and mesh; the config says which records it reads."""

    config: RunConfig
    tokenizer: PreTrainedTokenizerFast
    mesh: Mesh
    embed: EmbedFunction
    model: ModelState
    masked: bool = False  # whether `embed` also embeds frames and texts alone

    def embed_rows(
        self,
        domain: str,
        rows: Sequence[int] | np.ndarray,
        on_batch: Callable[[int], object] = lambda items: None,
        invalid_items: InvalidItems | None = None,
    ) -> Items:
        """Embeds rows of a domain. All hosts must call this, and each gets all items.

        `on_batch` is called after each batch with its number of items. Items that cannot be read or embedded are
        skipped and added to `invalid_items`. Without it, they are errors.
        """
        if not len(rows):
            return no_items(self.config.model.embedding, masked=self.masked)
        batches, remaining = self.batches(domain, np.asarray(rows).tolist(), invalid_items), len(rows)

        def count(size: int) -> None:
            nonlocal remaining
            on_batch(min(size, remaining))  # the last batch is padded
            remaining -= min(size, remaining)

        return self.embed_batches(batches, domain, count, invalid_items)

    def batches(
        self, domain: str, rows: Sequence[int] | None = None, invalid_items: InvalidItems | None = None
    ) -> Iterator[Batch]:
        """Returns this host's share of the batches of some or all rows of a domain, see `evaluation_batches`."""
        shares = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        size = -(-self.config.eval.batch_size // shares) * shares
        options = {"batch_size": size, "rows": rows, "invalid_items": invalid_items}
        return evaluation_batches(self.config, self.tokenizer, domain=domain, **options)

    def embed_batches(
        self,
        batches: Iterable[Batch],
        domain: str,
        on_batch: Callable[[int], object] = lambda size: None,
        invalid_items: InvalidItems | None = None,
    ) -> Items:
        """Embeds all items of some batches. Every host gets the items of all hosts.

        Args:
            batches: This host's share of each batch, from `eval_batches`; the last batch is padded.
            domain: Domain of the items.
            on_batch: Called after each batch with its size.
            invalid_items: Collects items with invalid embeddings, which are skipped. Without it, or if all are invalid,
                they are errors.
        """
        vectors, columns = [], []
        for batch, vector in lookahead(self._start(batches, domain)):
            products, has_text = batch[domain]["products"], batch[domain]["text"].any(-1)
            vectors.append(np.asarray(vector))
            columns.append([products, batch["row"], batch["item_id"], batch["frame_count"], has_text])
            on_batch(len(vector))
        found = np.concatenate(vectors)
        found, masked = (found[:, 0], found[:, 1:]) if found.ndim == 3 else (found, None)
        items = Items(found, *(gather_shares(np.stack(column)) for column in zip(*columns, strict=True)), masked=masked)
        items = items.select(items.rows >= 0)
        valid = _have_unit_length(items.vectors)
        if invalid_items is not None and valid.any():
            for number in items.item_ids[~valid]:
                invalid_items.add(InvalidItemError(f"the embedding of {domain} item {number} does not have length 1"))
            items = items.select(valid)
        check_unit_length(items.vectors, domain, items.item_ids)
        return items

    def _start(self, batches: Iterable[Batch], domain: str) -> Iterator[tuple[Batch, jax.Array]]:
        """Starts the computation of each batch."""
        for batch in batches:
            inputs = {name: batch[domain][name] for name in MODEL_INPUTS}
            yield batch, self.embed(self.model, {domain: to_devices(inputs, self.mesh)})


def load_run(
    config: RunConfig,
    workdir: Path,
    step: int,
    *,
    average: bool = False,
    mesh: Mesh | None = None,
    masked: bool = False,
) -> LoadedRun:
    """Loads a checkpoint, or the moving average of its parameters, on a mesh; by default, on `evaluation_mesh`.

    With `masked`, the run also embeds the frames and the texts of items alone.

    Raises:
        FileNotFoundError: There is no such checkpoint, or no initial weights for step 0.
        ValueError: The checkpoint is invalid, or there is no average.
    """
    mesh = mesh or evaluation_mesh(config)
    if config.model.attention == "cudnn":  # these devices may not support it
        config = replace_fields(config, {"model.attention": "auto"})
    tokenizer = load_tokenizer(workdir / "tokenizer")
    with Checkpoints(workdir) as checkpoints:
        graphdef, model = load_model(config, checkpoints, step, mesh, vocab_size=len(tokenizer), average=average)
    return LoadedRun(config, tokenizer, mesh, embed_function(graphdef, model, mesh, masked=masked), model, masked)


def check_whole_processes(mesh: Mesh, remedy: str) -> None:
    """Raises ValueError, with a remedy, if processes of a mesh have shares of the same items."""
    if batch_share(mesh) != (jax.process_index(), jax.process_count()):
        raise ValueError(
            f"config.mesh.tensor={mesh.shape['tensor']} spans processes, which evaluation does not support; lower it, "
            f"or {remedy}"
        )


def evaluation_mesh(config: RunConfig) -> Mesh:
    """Returns the mesh of training or, if it does not fit these devices, one in which each has all parameters."""
    with suppress(ValueError):
        mesh = make_mesh(**asdict(config.mesh))
        if batch_share(mesh) == (jax.process_index(), jax.process_count()):
            return mesh
    return make_mesh(data=-1, fsdp=1, tensor=1)


def embed_function(graphdef: nnx.GraphDef, model: ModelState, mesh: Mesh, *, masked: bool = False) -> EmbedFunction:
    """Returns the compiled function (model, {domain: inputs}) → float32[B, E], the fused embeddings, replicated.

    With `masked`, it returns float32[B, 3, E], see `CopeModel.embed_masked`.

    `model` has the shardings of the function's argument, which is not donated, because all calls use it.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, model)

    def embed(model: ModelState, batch: Batch) -> jax.Array:
        merged = nnx.merge(graphdef, *model)
        if masked:
            return merged.embed_masked(batch)
        (embeddings,) = merged(batch).values()
        return embeddings.fused

    return jax.jit(embed, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=replicated(mesh))


def lookahead(items: Iterable[T]) -> Iterator[T]:
    """Yields each item after requesting the next one, so that the device computes while the host fetches results."""
    previous = None
    for item in items:
        if previous is not None:
            yield previous
        previous = item
    if previous is not None:
        yield previous


def gather_shares(shares: np.ndarray) -> np.ndarray:
    """Joins the shares [batches, B / hosts, …] of all hosts to [batches · B, …], in order."""
    by_batch = np.moveaxis(allgather(shares), 0, 1)
    return by_batch.reshape(-1, *shares.shape[2:])


def _have_unit_length(vectors: np.ndarray) -> np.ndarray:
    return np.abs(np.linalg.norm(vectors, axis=-1) - 1) < 1e-3


def check_unit_length(vectors: np.ndarray, domain: str, item_ids: np.ndarray) -> None:
    """Raises ValueError naming the items whose embeddings are zero or not finite."""
    if len(invalid := item_ids[~_have_unit_length(vectors)]):
        raise ValueError(f"{len(invalid)} {domain} embeddings do not have length 1, of items {invalid[:10].tolist()}")

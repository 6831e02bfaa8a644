"""Cross-domain product embeddings (COPE, arXiv 2308.05550) in JAX.

Dimension letters used in docstrings and in names such as `tokens_BND`:

    B  examples of a batch       T  frames of a clip        H W  image height and width
    N  tokens of one frame       L  tokens of a text        K    attention heads
    D  width of an encoder       E  width of an embedding   M    products an item may belong to
    P  products                  Q  queries                 G    gallery items

`data` makes uint8 batches, `models` turns them into embeddings, `losses` compares these; `training` and `evaluation`
combine the parts as a config says. `cope_jax.Embedder` embeds your own photos, clips and texts with a trained model.
`cope --help` lists the commands.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cope_jax.search.embedder import Embedder

__version__ = "0.1.0"
__all__ = ["Embedder", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports `Embedder` when it is used, so that commands without a model start without JAX."""
    if name == "Embedder":
        from cope_jax.search.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

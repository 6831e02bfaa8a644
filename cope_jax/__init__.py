"""Cross-domain product embeddings (COPE, arXiv 2308.05550) in JAX.

Dimension letters used in docstrings and in names such as `tokens_BND`:

    B  examples of a batch       T  frames of a clip        H W  image height and width
    N  tokens of one frame       L  tokens of a text        K    attention heads
    D  width of an encoder       E  width of an embedding   M    products an item may belong to
    P  products                  Q  queries                 G    gallery items

Data flows one way: `data` makes uint8 batches, `models` turns them into embeddings, `losses` compares those,
`training` and `evaluation` put the pieces together from a config.

`cope_jax.Embedder` embeds photos, clips and texts of one's own with a trained model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cope_jax.search.embedder import Embedder

__version__ = "0.1.0"
__all__ = ["Embedder", "__version__"]


def __getattr__(name: str) -> Any:
    """`from cope_jax import Embedder`, imported when asked for: a command that needs no model starts without jax."""
    if name == "Embedder":
        from cope_jax.search.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

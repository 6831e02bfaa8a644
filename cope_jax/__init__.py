"""Cross-domain product embeddings (COPE, arXiv 2308.05550) in JAX.

Dimension letters used in docstrings and in names such as `tokens_BND`:

    B  examples of a batch       T  frames of a clip        H W  image height and width
    N  tokens of one frame       L  tokens of a text        K    attention heads
    D  width of an encoder       E  width of an embedding   M    products an item may belong to
    P  products                  Q  queries                 G    gallery items

`data` makes uint8 batches, `models` turns them into embeddings, `losses` compares these; `training` and `evaluation`
combine the parts as a config says. `cope_jax.Embedder` embeds your own photos, clips and texts with a trained model;
`cope_jax.Index` finds the nearest of embedded items. `cope --help` lists the commands.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cope_jax.search.embedder import Embedder
    from cope_jax.search.index import Index

__version__ = "0.2.0"
__all__ = ["Embedder", "Index", "__version__"]
_MODULES = {"Embedder": "cope_jax.search.embedder", "Index": "cope_jax.search.index"}

INSTALLED = not (Path(__file__).parents[1] / "configs/default.py").exists()  # not a checkout
CONFIG_ROOT = Path(__file__).with_name("shipped") if INSTALLED else Path(__file__).parents[1]  # folder with `configs/`


def __getattr__(name: str) -> Any:
    """Imports a class when it is used, so that commands without a model start without JAX."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

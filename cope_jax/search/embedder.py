"""Embeds what lies outside of records: photos, clips and texts of one's own, with the pixels that evaluation sees."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from cope_jax import exported
from cope_jax.data.collate import Example, LeafMaker
from cope_jax.data.images import WHOLE, crop_resize, on_white, resize
from cope_jax.data.orientation import exif_orientation, turn_upright
from cope_jax.data.records import Item
from cope_jax.data.tokenizer import load_tokenizer
from cope_jax.domains import DOMAINS
from cope_jax.evaluation.embed_items import MODEL_INPUTS, check_lengths, embed_function, late
from cope_jax.evaluation.evaluate_run import LATEST, step_number
from cope_jax.parallel.mesh import make_mesh, to_devices
from cope_jax.runs.checkpoints import Checkpoints, load_model
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import resolve_config

Picture = str | Path | bytes | np.ndarray | Image.Image
Program = Callable[[str, Mapping[str, np.ndarray]], jax.Array]  # domain, inputs → float32[B, E]


@dataclass(frozen=True)
class OwnView:
    """`EvalView` for pictures of any kind; each comes with its number in the clip, for errors."""

    size: int

    def __call__(self, pictures: Sequence[tuple[int, Picture]], rng: None, out: np.ndarray) -> np.ndarray:
        """Numbered pictures → `out`, u8[N, size, size, 3]; ValueError where one cannot be read."""
        for (number, picture), frame in zip(pictures, out, strict=True):
            frame[:] = square(picture, self.size, number)
        return out


@dataclass(frozen=True)
class Embedder:
    """A trained model for items of one's own, on one device.

        embedder = Embedder.from_workdir("runs/demo")
        pages = embedder.embed("page", images=["dress.jpg", photo], texts=["a red dress", ""])
        videos = embedder.embed("video", frames=[["0.jpg", "1.jpg"], clip])    # float32[2, E]
        scores = pages @ videos.T

    A picture is a path, encoded bytes, uint8[H, W, 3] in RGB or a PIL image. Files and bytes are read as evaluation
    reads records; these and PIL images are turned upright as their EXIF says.

    Attributes:
        config: of the run.
        tokenizer: of its texts.
        program: the compiled model; compiles once for each domain and size of batch: powers of two up to the config's
            eval.batch_size.
    """

    config: RunConfig
    tokenizer: PreTrainedTokenizerFast
    program: Program

    @classmethod
    def from_workdir(cls, path: str | Path, step: int | str = LATEST, *, average: bool = False) -> "Embedder":
        """The model of a training run.

        Args:
            path: its work directory.
            step: of the checkpoint, "latest" or "best", as `evaluation.run.evaluate` has it.
            average: whether it is the moving average of the parameters.

        Raises:
            FileNotFoundError: no such work directory or step.
            ValueError: step is another word, or there is no average.
        """
        workdir = Path(path)
        config = load_config(workdir)
        tokenizer = load_tokenizer(workdir / "tokenizer")
        number = step_number(workdir, step, config)
        mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.local_devices()[:1])
        with Checkpoints(workdir) as checkpoints:
            graphdef, model = load_model(config, checkpoints, number, mesh, vocab_size=len(tokenizer), average=average)
        embed = embed_function(graphdef, jax.tree.map(lambda leaf: leaf.sharding, model), mesh)
        return cls(config, tokenizer, lambda domain, inputs: embed(model, {domain: to_devices(inputs, mesh)}))

    @classmethod
    def from_export(cls, path: str | Path) -> "Embedder":
        """The model in a folder that `cope_jax.export` wrote; errors as of `exported.load`."""
        model = exported.load(path)

        def program(domain: str, inputs: Mapping[str, np.ndarray]) -> jax.Array:
            return model.programs[domain](model.weights, *(inputs[name] for name in MODEL_INPUTS))

        return cls(resolve_config(model.config["run"]), load_tokenizer(Path(path) / exported.TOKENIZER), program)

    def embed(
        self,
        domain: str,
        *,
        images: Sequence[Picture | None] | None = None,
        frames: Sequence[Sequence[Picture]] | None = None,
        texts: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """Embeds items of a domain.

        Args:
            domain: "page", "video" or "live".
            images: one picture an item, None where it has none.
            frames: instead of images, all pictures of each item in time order; those at the middles of equal segments
                are taken, as in evaluation. Empty where it has none.
            texts: one an item, "" or None where it has none. Without texts, or without pictures, the model sees the
                other alone.

        Returns:
            float32[N, E] of length 1.

        Raises:
            ValueError: an unknown domain; images and frames, or neither they nor texts; counts that differ; an item
                without anything that the model looks at; a picture that cannot be read.
        """
        clips, texts = self.items_of(domain, images, frames, texts)
        maker = LeafMaker(
            domain,
            self.config.eval.frames[domain],
            OwnView(self.config.data.image_size),
            self.config.data.text_length,
            self.tokenizer,
            max_products=1,
            short_clips=self.config.data.short_clips,
        )
        items = [
            Item(number, text, (), tuple(enumerate(clip)))
            for number, (clip, text) in enumerate(zip(clips, texts, strict=True))
        ]
        parts = [np.asarray(vectors)[:count] for count, vectors in late(self.dispatch(items, maker))]
        vectors = np.concatenate([np.zeros((0, self.config.model.embedding), np.float32), *parts])
        check_lengths(vectors, domain, np.arange(len(vectors)))
        return vectors

    def items_of(self, domain: str, images: Any, frames: Any, texts: Any) -> tuple[list[list[Picture]], list[str]]:
        """The arguments of `embed` as the clip and the text of each item; its errors but those of pictures."""
        if domain not in DOMAINS:
            raise ValueError(f"unknown domain {domain!r}: choose one of {', '.join(DOMAINS)}")
        if images is not None and frames is not None:
            raise ValueError("both images and frames are given; frames are for items of several pictures")
        given = {
            name: column
            for name, column in (("images", images), ("frames", frames), ("texts", texts))
            if column is not None
        }
        if not given:
            raise ValueError(f"nothing to embed: give images, frames or texts of the {domain} items")
        counts = {name: len(column) for name, column in given.items()}
        if len(set(counts.values())) > 1:
            raise ValueError("counts differ: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        (count,) = set(counts.values())
        if images is not None:
            frames = [[] if image is None else [image] for image in images]
        clips = [list(clip) for clip in frames] if frames is not None else [[] for _ in range(count)]
        texts = [text or "" for text in texts] if texts is not None else [""] * count
        for number, (clip, text) in enumerate(zip(clips, texts, strict=True)):
            if not clip and not (text and self.reads_texts(domain)):
                reason = f": the model reads no texts of this domain, and {text!r} is all it has" if text else ""
                raise ValueError(f"{domain} item {number} has nothing to embed{reason}")
        return clips, texts

    def reads_texts(self, domain: str) -> bool:
        """Whether the model was made to look at the texts of a domain."""
        return domain in self.config.model.text_domains

    def dispatch(self, items: Sequence[Item], maker: LeafMaker) -> Iterator[tuple[int, jax.Array]]:
        """Starts the computation of each batch: how many items, and their embeddings with padding behind them."""
        full = self.config.eval.batch_size
        with ThreadPoolExecutor(self.config.data.threads or 1) as pool:
            for start in range(0, len(items), full):
                batch = items[start : start + full]
                leaves = list(pool.map(lambda item: maker([[Example(item)]]), batch))
                size = min(1 << (len(batch) - 1).bit_length(), full)
                leaves += [maker([[]] * (size - len(batch)))] if size > len(batch) else []
                inputs = {name: np.concatenate([leaf[name] for leaf in leaves]) for name in MODEL_INPUTS}
                yield len(batch), self.program(maker.domain, inputs)


def square(picture: Picture, size: int, number: int) -> np.ndarray:
    """A picture resized as evaluation does: u8[size, size, 3].

    Raises:
        ValueError: it cannot be read; names its path, or its number in the clip.
    """
    if isinstance(picture, Image.Image):
        pixels = turn_upright(on_white(picture), exif_orientation(picture.info.get("exif", b"")))
        return resize(pixels, WHOLE, size)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(f"picture {number} is {picture.dtype}{list(picture.shape)}; it must be uint8[H, W, 3]")
        return resize(picture, WHOLE, size)
    name = f"picture {number}" if isinstance(picture, bytes) else str(picture)
    try:
        return crop_resize(picture if isinstance(picture, bytes) else Path(picture).read_bytes(), WHOLE, size)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error

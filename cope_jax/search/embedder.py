"""Embeds photos, clips, and texts from outside the records, with the same preprocessing as evaluation."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from cope_jax import exported
from cope_jax.data.frames import choose_frames
from cope_jax.data.images import RESIZES, WHOLE, Box, crop_resize, limit_opencv_threads, resize, upright_pixels
from cope_jax.data.tokenizer import encode, load_tokenizer
from cope_jax.evaluation.embed_items import check_unit_length, load_run, lookahead
from cope_jax.evaluation.results import LATEST, find_step
from cope_jax.models.cope import MODEL_INPUTS
from cope_jax.parallel.mesh import make_mesh, to_devices
from cope_jax.runs.config import RunConfig
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import add_missing_fields, resolve_config
from data_prep.common.hub import find_folder
from data_prep.common.process_pool import usable_cores
from data_prep.common.progress import Progress
from data_prep.videos.reader import FrameChoice, VideoError, VideoProblem, VideoReader
from data_prep.videos.segments import find_segments
from data_prep.videos.transcripts import clip_text, read_transcript

Picture = str | Path | bytes | np.ndarray | Image.Image
Video = str | Path | bytes  # a file, or its contents
SMALL_BATCH = 8  # items
Program = Callable[[str, Mapping[str, np.ndarray]], jax.Array]  # domain, inputs → float32[B, E]


@dataclass(frozen=True)
class VideoPart:
    """The part of a video from `start` to `end`, in seconds; None is its start or its end."""

    video: Video
    start: float | None = None
    end: float | None = None


OwnItem = tuple[list[Picture] | VideoPart, str]  # pictures or video, and text


@dataclass(frozen=True)
class Segments:
    """Embedded segments of a recording, in time order."""

    vectors: np.ndarray  # float32[N, E] of unit length
    starts: np.ndarray  # float64[N], seconds
    ends: np.ndarray  # float64[N], seconds


@dataclass(frozen=True)
class Embedder:
    """A trained model that embeds your own items, on one device.

        embedder = Embedder.from_workdir("runs/demo")
        pages = embedder.embed("page", images=["dress.jpg", photo], texts=["a red dress", ""])
        videos = embedder.embed("video", frames=[["0.jpg", "1.jpg"], clip])    # float32[2, E]
        scores = embedder.similarity(pages, videos)    # float32[2, 2]
        clips = embedder.embed("video", frames=["clip.mp4", VideoPart("show.mp4", start=724, end=732)])

    A picture is a path, encoded bytes, uint8[H, W, 3] in RGB, or a PIL image. Files and bytes are decoded as in
    evaluation. They and PIL images are turned upright according to their EXIF orientation.

    Attributes:
        config: Config of the run.
        tokenizer: Tokenizer of the run.
        program: The model. It is compiled once per domain and batch size, see `warm_up`.
    """

    config: RunConfig
    tokenizer: PreTrainedTokenizerFast
    program: Program

    @classmethod
    def from_workdir(cls, path: str | Path, step: int | str = LATEST, *, average: bool = False) -> "Embedder":
        """Loads the model of a training run.

        Args:
            path: Work directory of the run.
            step: Step of the checkpoint, "latest", or "best", the one with the highest mean R@1.
            average: Load the moving average of the parameters.
        """
        workdir = Path(path)
        config = load_config(workdir)
        mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.local_devices()[:1])
        run = load_run(config, workdir, find_step(workdir, step, config), average=average, mesh=mesh)

        def program(domain: str, inputs: Mapping[str, np.ndarray]) -> jax.Array:
            return run.embed(run.model, {domain: to_devices(inputs, mesh)})

        return cls(config, run.tokenizer, program)

    @classmethod
    def from_export(cls, path: str | Path) -> "Embedder":
        """Loads a model that `cope_jax.export` wrote; raises the errors of `exported.load`."""
        model = exported.load(path)

        def program(domain: str, inputs: Mapping[str, np.ndarray]) -> jax.Array:
            return model.programs[domain](model.weights, *(inputs[name] for name in MODEL_INPUTS))

        return cls(
            resolve_config(add_missing_fields(model.config["run"])),
            load_tokenizer(Path(path) / exported.TOKENIZER),
            program,
        )

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Embedder":
        """Loads an export from the Hugging Face hub, "owner/name" or "owner/name@revision", or from a folder.

        Raises FileNotFoundError if there is no such repository or folder, and the errors of `from_export`.
        """
        return cls.from_export(find_folder(str(name), exported.HUB_FILES, key="name"))

    def embed(
        self,
        domain: str,
        *,
        images: Iterable[Picture | None] | None = None,
        frames: Iterable[Iterable[Picture] | Video | VideoPart | None] | None = None,
        texts: Iterable[str | None] | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        on_error: Literal["raise", "none"] = "raise",
    ) -> np.ndarray:
        """Embeds items of a domain. Of generators, one batch at a time is in memory.

        Args:
            domain: One of the run's domains, such as "page".
            images: One picture per item, or None.
            frames: Instead of images, all pictures of each item in time order, or its video: a path, the bytes of a
                file, or a `VideoPart`. As in evaluation, the pictures in the middles of equal segments are used, and
                a video has those that a build would choose. Empty or None if an item has none.
            texts: One text per item, "" or None if it has none. Without texts or without pictures, the model embeds
                the other modality alone.
            batch_size: Most items to compute at once; by default, `config.eval.batch_size`.
            show_progress_bar: Show a progress bar, or lines in a log.
            on_error: "raise", or "none": items that cannot be embedded become NaN, with one warning.

        Returns:
            float32[N, E] of unit length.

        Raises:
            ValueError: The domain or an option is unknown, both images and frames or nothing at all are given, or the
                counts differ. With on_error="raise", also if an item has nothing that the model reads, or a picture or
                video cannot be read.
        """
        limit = self._limit(batch_size)
        if on_error not in ("raise", "none"):
            raise ValueError(f"on_error is {on_error!r}: choose 'raise' or 'none'")
        errors: dict[int, ValueError] | None = None if on_error == "raise" else {}
        columns, count = self._columns(domain, images, frames, texts), None
        items = self._items(domain, columns, errors)
        if all(isinstance(column, Sized) for column in columns.values()):
            items = list(items)  # checks all of them before the first batch
            count = len(items)
        parts = [np.zeros((0, self.config.model.embedding), np.float32)]
        with Progress(desc=domain, unit="items", total=count, disable=not show_progress_bar) as progress:
            for size, vectors in lookahead(self._dispatch(domain, iter(items), limit, errors)):
                parts.append(np.asarray(vectors)[:size])
                progress.update(size)
        vectors = np.concatenate(parts)
        valid = np.delete(np.arange(len(vectors)), list(errors or ()))
        check_unit_length(vectors[valid], domain, valid)
        if errors:
            vectors[list(errors)] = np.nan
            message = f"{len(errors)} of {len(vectors)} {domain} items could not be embedded and are NaN, first "
            warnings.warn(message + str(errors[min(errors)]), stacklevel=2)
        return vectors

    @staticmethod
    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Returns the cosine similarities of embeddings float32[N, E] and float32[M, E]: float32[N, M]."""
        return np.asarray(a) @ np.asarray(b).T

    def warm_up(self, *domains: str, batch_size: int | None = None) -> None:
        """Compiles the programs of domains, by default all, so that no later call has to wait for that.

        `batch_size` is that of later calls; with 1, only the program for single items is compiled.
        """
        limit = self._limit(batch_size)
        for domain in domains or self.config.data.domains:
            for size in sorted({1, min(SMALL_BATCH, limit), limit}):
                self.embed(domain, images=[np.zeros((8, 8, 3), np.uint8)] * size, batch_size=limit)

    def embed_segments(
        self,
        video: Video,
        *,
        domain: str | None = None,
        length: float = 8.0,
        stride: float = 4.0,
        transcript: str | Path | None = None,
    ) -> Segments:
        """Embeds overlapping segments of a recording.

        Args:
            video: Path or bytes of the recording.
            domain: Domain that the segments are embedded as; by default the last one of clips, as ROPE's "live".
            length: Seconds of a segment.
            stride: Seconds from the start of a segment to that of the next one.
            transcript: File with subtitles (.srt, .vtt) or a transcript (Whisper's .json), the segments' texts.

        Raises:
            ValueError: As for `embed`, or there are no domains of clips.
        """
        clips = [name for name, kind in self.config.data.domains.items() if kind == "clip"]
        if not (domain := domain or (clips[-1] if clips else None)):
            raise ValueError("the model has no domain of clips: give the domain to embed the segments as")
        cues = read_transcript(Path(transcript)) if transcript else []
        with VideoReader(processes=1) as reader:
            parts = find_segments(reader, video, length=length, stride=stride)
        vectors = self.embed(
            domain,
            frames=[VideoPart(video, part.start, part.end) for part in parts],
            texts=[clip_text(cues, part.start, part.end) for part in parts] if cues else None,
        )
        return Segments(vectors, np.array([part.start for part in parts]), np.array([part.end for part in parts]))

    def _limit(self, batch_size: int | None) -> int:
        limit = self.config.eval.batch_size if batch_size is None else batch_size
        if limit < 1:
            raise ValueError(f"batch_size is {limit}; it must be at least 1")
        return limit

    def _columns(
        self, domain: str, images: Iterable[Any] | None, frames: Iterable[Any] | None, texts: Iterable[Any] | None
    ) -> dict[str, Iterable[Any]]:
        """Checks the arguments of `embed` and returns those that are given."""
        if domain not in (domains := self.config.data.domains):
            raise ValueError(f"unknown domain {domain!r}: choose one of {', '.join(domains)}")
        if images is not None and frames is not None:
            raise ValueError("both images and frames are given; frames are for items with several pictures")
        columns = {
            name: _check_list(values, name, contents)
            for name, values, contents in (
                ("images", images, "one picture per item"),
                ("frames", frames, "a list of pictures or a video per item"),
                ("texts", texts, "one text per item"),
            )
            if values is not None
        }
        if not columns:
            raise ValueError(f"nothing to embed: give images, frames, or texts of the {domain} items")
        counts = {name: len(column) for name, column in columns.items() if isinstance(column, Sized)}
        if len(set(counts.values())) > 1:
            raise ValueError("counts differ: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        return columns

    def _items(
        self, domain: str, columns: Mapping[str, Iterable[Any]], errors: dict[int, ValueError] | None
    ) -> Iterator[OwnItem]:
        """Yields the pictures or the video, and the text of each item; those of an invalid one are empty."""
        end = object()
        for number, values in enumerate(zip_longest(*columns.values(), fillvalue=end)):
            row = {name: value for name, value in zip(columns, values, strict=True) if value is not end}
            if len(row) < len(columns):
                raise ValueError(f"counts differ: after {number} items, there are only {', '.join(row)}")
            item: OwnItem = ([], "")
            with _collect(errors, number):
                item = self._item(domain, number, row)
            yield item

    def _item(self, domain: str, number: int, row: Mapping[str, Any]) -> OwnItem:
        clip: list[Picture] | VideoPart = []
        if row.get("images") is not None:
            clip = [row["images"]]
        elif row.get("frames") is not None:
            clip = _to_clip(row["frames"], f"frames[{number}]")
        text = row.get("texts") or ""
        if not isinstance(text, str):
            raise ValueError(
                f"the text of {domain} item {number} is of type {type(text).__name__}; it must be a string, or None if "
                "the item has none"
            )
        if not clip and not (text and domain in self.config.model.text_domains):
            reason = f": the model does not read {domain} texts, and the item has only {text!r}" if text else ""
            raise ValueError(f"{domain} item {number} has nothing to embed{reason}")
        return clip, text

    def _dispatch(
        self, domain: str, items: Iterator[OwnItem], limit: int, errors: dict[int, ValueError] | None
    ) -> Iterator[tuple[int, jax.Array]]:
        """Starts the computation of each batch; yields its size and its embeddings, padded.

        Programs are compiled for three sizes only: `limit`, SMALL_BATCH, which the last items are split into, and one.
        """
        limit_opencv_threads()
        start, reader, cores = 0, None, usable_cores()
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(cores))
            while batch := list(islice(items, limit)):
                if reader is None and any(isinstance(clip, VideoPart) for clip, _ in batch):
                    reader = stack.enter_context(VideoReader(processes=cores))
                size = limit if len(batch) == limit else min(SMALL_BATCH, limit)
                for part in (batch[first : first + size] for first in range(0, len(batch), size)):
                    numbers = range(start, start := start + len(part))
                    clips = [
                        pool.submit(self._squares, domain, number, clip, reader)
                        for number, (clip, _) in zip(numbers, part, strict=True)
                    ]
                    inputs = self._inputs(domain, part, size if len(part) > 1 else 1)
                    for row, clip in enumerate(clips):
                        with _collect(errors, numbers[row]):
                            own = clip.result()
                            inputs["frames"][row, : len(own)], inputs["frame_mask"][row, : len(own)] = own, True
                    yield len(part), self.program(domain, inputs)

    def _inputs(self, domain: str, items: Sequence[OwnItem], size: int) -> dict[str, np.ndarray]:
        """Inputs of the model for some items and padding: their texts, and no frames yet."""
        data, T = self.config.data, self.config.eval.frames[domain]
        texts = [*(text for _, text in items), *[""] * (size - len(items))]
        frames = np.zeros((size, T, data.image_size, data.image_size, 3), np.uint8)
        text = encode(self.tokenizer, texts, data.text_length, data.template(domain))
        return {"frames": frames, "frame_mask": np.zeros((size, T), bool), "text": text}

    def _squares(self, domain: str, number: int, clip: Sequence[Picture] | VideoPart, reader: Any) -> np.ndarray:
        """The frames of an item that the model reads: uint8[n, H, W, 3]."""
        T, side, box = self.config.eval.frames[domain], self.config.data.image_size, RESIZES[self.config.data.resize]
        try:
            if isinstance(clip, VideoPart):
                clip = _read_frames(reader, clip)
            choice = choose_frames(
                len(clip), T, kind=self.config.data.domains[domain], short_clips=self.config.data.short_clips, rng=None
            )
            positions = choice.tolist()
            squares = {position: resize_picture(clip[position], side, position, box) for position in set(positions)}
        except ValueError as error:
            raise ValueError(f"{domain} item {number}: {error}") from error
        return np.array([squares[position] for position in positions], np.uint8).reshape(-1, side, side, 3)


def _read_frames(reader: VideoReader, part: VideoPart) -> tuple[bytes, ...]:
    """Reads the frames that a build would choose, or black ones if there are no others."""
    try:
        return reader.read(part.video, start=part.start, end=part.end).frames
    except VideoError as error:
        if error.problem != VideoProblem.BLACK:
            raise
        return reader.read(part.video, FrameChoice(skip_black=False), part.start, part.end).frames


def _to_clip(clip: Any, name: str) -> list[Picture] | VideoPart:
    """Returns an element of `frames`: a list of pictures or a video."""
    if isinstance(clip, str | bytes | os.PathLike):
        clip = VideoPart(clip if isinstance(clip, str | bytes) else Path(clip))
    if isinstance(clip, VideoPart):
        return clip
    return list(_check_list(clip, name, "the pictures of the item, or a video"))


def _check_list(values: Any, name: str, contents: str) -> Iterable[Any]:
    """Returns an iterable. Raises ValueError for a single text or picture, and for other types."""
    single = isinstance(values, str | bytes | os.PathLike | Image.Image | Mapping | Set) or hasattr(values, "read")
    if single or getattr(values, "ndim", 4) == 3 or not isinstance(values, Iterable):
        raise ValueError(f"{name} is of type {type(values).__name__}; it must be a list with {contents}")
    return values


@contextmanager
def _collect(errors: dict[int, ValueError] | None, number: int) -> Iterator[None]:
    """Adds an error to `errors`, if there are any; otherwise, it is raised."""
    try:
        yield
    except ValueError as error:
        if errors is None:
            raise
        errors[number] = error


def resize_picture(picture: Picture, side: int, number: int, box: Box | None = WHOLE) -> np.ndarray:
    """Resizes a picture as in evaluation, to uint8[side, side, 3]. Error messages have its path or number."""
    if isinstance(picture, Image.Image):
        return resize(upright_pixels(picture), box, side)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(f"picture {number} is {picture.dtype}{list(picture.shape)}; it must be uint8[H, W, 3]")
        return resize(picture, box, side)
    if not isinstance(picture, str | bytes | os.PathLike):
        raise ValueError(
            f"picture {number} is of type {type(picture).__name__}; it must be a path, the bytes of a file, "
            "uint8[H, W, 3], or a PIL image"
        )
    name = f"picture {number}" if isinstance(picture, bytes) else str(picture)
    if not isinstance(picture, bytes) and re.match(r"\w{2,}:/|data:", name):
        raise ValueError(f"{name[:200]} is a URL; download it first, and give its path or its bytes")
    try:
        return crop_resize(picture if isinstance(picture, bytes) else Path(picture).read_bytes(), box, side)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error

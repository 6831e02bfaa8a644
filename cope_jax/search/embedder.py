"""Embeds photos, clips, and texts from outside the records, with the same preprocessing as evaluation."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from data_prep.common.process_pool import usable_cores
from data_prep.videos.reader import FrameChoice, VideoError, VideoProblem, VideoReader
from data_prep.videos.segments import find_segments
from data_prep.videos.transcripts import clip_text, read_transcript

Picture = str | Path | bytes | np.ndarray | Image.Image
Video = str | Path | bytes  # a file, or its contents
Program = Callable[[str, Mapping[str, np.ndarray]], jax.Array]  # domain, inputs → float32[B, E]


@dataclass(frozen=True)
class VideoPart:
    """The part of a video from `start` to `end`, in seconds; None is its start or its end."""

    video: Video
    start: float | None = None
    end: float | None = None


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
        scores = pages @ videos.T
        clips = embedder.embed("video", frames=["clip.mp4", VideoPart("show.mp4", start=724, end=732)])

    A picture is a path, encoded bytes, uint8[H, W, 3] in RGB, or a PIL image. Files and bytes are decoded as in
    evaluation. They and PIL images are turned upright according to their EXIF orientation.

    Attributes:
        config: Config of the run.
        tokenizer: Tokenizer of the run.
        program: The model. It is compiled once per domain and batch size, which are powers of two up to
            `config.eval.batch_size`.
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

    def embed(
        self,
        domain: str,
        *,
        images: Sequence[Picture | None] | None = None,
        frames: Sequence[Sequence[Picture] | Video | VideoPart] | None = None,
        texts: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """Embeds items of a domain.

        Args:
            domain: One of the run's domains, such as "page".
            images: One picture per item, or None.
            frames: Instead of images, all pictures of each item in time order, or its video: a path, the bytes of a
                file, or a `VideoPart`. As in evaluation, the pictures in the middles of equal segments are used, and
                a video has those that a build would choose. Empty if an item has none.
            texts: One text per item, "" or None if it has none. Without texts or without pictures, the model embeds
                the other modality alone.

        Returns:
            float32[N, E] of unit length.

        Raises:
            ValueError: The domain is unknown, both images and frames or nothing at all are given, the counts differ,
                an item has nothing that the model reads, or a picture or video cannot be read.
        """
        clips, all_texts = self._clips_and_texts(domain, images, frames, texts)
        parts = [np.asarray(vectors)[:count] for count, vectors in lookahead(self._dispatch(domain, clips, all_texts))]
        vectors = np.concatenate([np.zeros((0, self.config.model.embedding), np.float32), *parts])
        check_unit_length(vectors, domain, np.arange(len(vectors)))
        return vectors

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

    def _clips_and_texts(
        self,
        domain: str,
        images: Sequence[Picture | None] | None,
        frames: Sequence[Sequence[Picture] | Video | VideoPart] | None,
        texts: Sequence[str | None] | None,
    ) -> tuple[list[list[Picture] | VideoPart], list[str]]:
        """Checks the arguments of `embed` and returns the pictures or the video, and the text of each item."""
        if domain not in (domains := self.config.data.domains):
            raise ValueError(f"unknown domain {domain!r}: choose one of {', '.join(domains)}")
        if images is not None and frames is not None:
            raise ValueError("both images and frames are given; frames are for items with several pictures")
        given = {
            "images": None if images is None else _to_list(images, "images", "one picture per item"),
            "frames": None if frames is None else _to_list(frames, "frames", "a list of pictures or a video per item"),
            "texts": None if texts is None else _to_list(texts, "texts", "one text per item"),
        }
        counts = {name: len(column) for name, column in given.items() if column is not None}
        if not counts:
            raise ValueError(f"nothing to embed: give images, frames, or texts of the {domain} items")
        if len(set(counts.values())) > 1:
            raise ValueError("counts differ: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        count = min(counts.values())
        clips: list[list[Picture] | VideoPart] = [[] for _ in range(count)]
        if given["images"] is not None:
            clips = [[] if image is None else [image] for image in given["images"]]
        elif given["frames"] is not None:
            clips = [_to_clip(clip, f"frames[{i}]") for i, clip in enumerate(given["frames"])]
        all_texts = [""] * count if given["texts"] is None else [text or "" for text in given["texts"]]
        if wrong := [text for text in all_texts if not isinstance(text, str)]:
            raise ValueError(
                f"a text is of type {type(wrong[0]).__name__}; it must be a string, or None if an item has none"
            )
        reads_texts = domain in self.config.model.text_domains
        for number, (clip, text) in enumerate(zip(clips, all_texts, strict=True)):
            if not clip and not (text and reads_texts):
                reason = f": the model does not read {domain} texts, and the item has only {text!r}" if text else ""
                raise ValueError(f"{domain} item {number} has nothing to embed{reason}")
        return clips, all_texts

    def _dispatch(
        self, domain: str, clips: list[list[Picture] | VideoPart], texts: list[str]
    ) -> Iterator[tuple[int, jax.Array]]:
        """Starts the computation of each batch; yields its size and its embeddings, padded."""
        T, side, limit = self.config.eval.frames[domain], self.config.data.image_size, self.config.eval.batch_size
        limit_opencv_threads()
        processes = min(usable_cores(), sum(isinstance(clip, VideoPart) for clip in clips))
        reader = VideoReader(processes=processes) if processes else nullcontext()
        with reader, ThreadPoolExecutor(max(processes, self.config.data.threads or 1)) as pool:
            for start in range(0, len(clips), limit):
                numbers = range(start, min(start + limit, len(clips)))
                padding = min(1 << (len(numbers) - 1).bit_length(), limit) - len(numbers)
                frames = np.zeros((len(numbers) + padding, T, side, side, 3), np.uint8)
                frame_mask = np.zeros(frames.shape[:2], bool)
                squares = pool.map(lambda number: self._squares(domain, number, clips[number], reader), numbers)
                for row, own in enumerate(squares):
                    frames[row, : len(own)], frame_mask[row, : len(own)] = own, True
                batch_texts = [*texts[start : start + limit], *[""] * padding]
                data = self.config.data
                text = encode(self.tokenizer, batch_texts, data.text_length, data.template(domain))
                yield len(numbers), self.program(domain, {"frames": frames, "frame_mask": frame_mask, "text": text})

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
    return clip if isinstance(clip, VideoPart) else _to_list(clip, name, "the pictures of the item, or a video")


def _to_list(values: Any, name: str, contents: str) -> list[Any]:
    """Returns the elements of an iterable. Raises ValueError for a single text or picture, and for other types."""
    single = isinstance(values, str | bytes | os.PathLike | Image.Image | Mapping | Set) or hasattr(values, "read")
    if single or getattr(values, "ndim", 4) == 3 or not isinstance(values, Iterable):
        raise ValueError(f"{name} is of type {type(values).__name__}; it must be a list with {contents}")
    return list(values)


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
    try:
        return crop_resize(picture if isinstance(picture, bytes) else Path(picture).read_bytes(), box, side)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error

"""Cuts a long recording into overlapping clips, the rows of a table for `table` and `build`.

    python -m data_prep.segment --video=show.mp4 --out=show.csv [--length=8] [--stride=4] [--transcript=show.srt]

Each row is an item such as show@00:12:04 with `video`, `start` and `end` in seconds, its text from a transcript (*.srt
or *.vtt, or the *.json of Whisper), and itself as its `product`, until you fill in the products that it shows. The name
of the video in the table is its path below the folder of the table; items of day1/show.mp4 are day1/show@00:12:04.
Clips start and end at scene changes that are near; with --noscenes, which need not decode the whole recording, all
start at multiples of --stride.
"""

import csv
import os
from pathlib import Path, PurePosixPath

from absl import flags

from data_prep.common import cli
from data_prep.common.files import atomic_write
from data_prep.videos.reader import VideoReader
from data_prep.videos.segments import LENGTH, STRIDE, find_segments
from data_prep.videos.transcripts import Cue, clip_text, read_transcript

FLAGS = flags.FLAGS
COLUMNS = ("product", "domain", "item", "text", "video", "start", "end")


def segment(
    reader: VideoReader,
    video: Path,
    out: Path,
    *,
    length: float = LENGTH,
    stride: float = STRIDE,
    by_scenes: bool = True,
    transcript: list[Cue] | None = None,
    domain: str = "live",
) -> int:
    """Writes the clips of a recording as a table.

    Args:
        reader: Reads the recording.
        video: The recording.
        out: Table to write, *.csv, in the folder of the recording or one above it.
        length: Seconds of a clip.
        stride: Seconds between the starts of two clips.
        by_scenes: Whether clips start and end at scene changes that are near.
        transcript: Texts and their times.
        domain: Domain of the clips.

    Returns:
        The number of clips.

    Raises:
        ValueError: The recording or an argument is invalid.
    """
    name = PurePosixPath(Path(os.path.relpath(video, out.parent)).as_posix())
    if ".." in name.parts:  # such names are invalid in tables
        folder = Path(os.path.abspath(video)).parent
        raise ValueError(f"out is {out}; write it into {folder}, the folder of the recording, or one above it")
    segments = find_segments(reader, video, length=length, stride=stride, by_scenes=by_scenes)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out, "w") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for part in segments:
            item = f"{name.with_suffix('')}@{_clock(part.start)}"
            text = clip_text(transcript or (), part.start, part.end)
            writer.writerow((item, domain, item, text, name, f"{part.start:.3f}", f"{part.end:.3f}"))
    return len(segments)


def _clock(seconds: float) -> str:
    """Returns 00:12:04 or, between whole seconds, 00:12:04.500."""
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    minutes, second = divmod(whole, 60)
    fraction = f".{milliseconds:03}" if milliseconds else ""
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{fraction}"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("video", None, "The recording: *.mp4, *.mov, *.webm, *.mkv or *.gif.", required=True)
    flags.DEFINE_string(
        "out", None, "Table to write, *.csv, in the folder of the recording or one above it.", required=True
    )
    flags.DEFINE_float("length", LENGTH, "Seconds of a clip.", lower_bound=0.1)
    flags.DEFINE_float("stride", STRIDE, "Seconds between the starts of two clips.", lower_bound=0.1)
    flags.DEFINE_bool("scenes", True, "Move the starts and ends of clips to scene changes that are near.")
    flags.DEFINE_string("transcript", None, "Texts and their times: *.srt, *.vtt, or the *.json of Whisper.")
    flags.DEFINE_string("domain", "live", "Domain of the clips.")
    flags.DEFINE_integer("processes", None, "Number of processes. Default: one per core.", lower_bound=1)


def main() -> None:
    out = Path(FLAGS.out)
    if out.suffix != ".csv":
        raise ValueError(f"--out is {FLAGS.out}; it must be a table *.csv")
    transcript = read_transcript(Path(FLAGS.transcript)) if FLAGS.transcript else None
    options = {"length": FLAGS.length, "stride": FLAGS.stride, "by_scenes": FLAGS.scenes, "domain": FLAGS.domain}
    with VideoReader(FLAGS.processes) as reader:
        count = segment(reader, Path(FLAGS.video), out, transcript=transcript, **options)
    print(
        f"{FLAGS.video}: {count:,} clips, listed in {out}; next: ./run.sh table --table={out} --images={out.parent} …"
    )


if __name__ == "__main__":
    define_flags()
    cli.run("segment", main)

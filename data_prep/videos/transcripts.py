"""Subtitles (.srt, .vtt) and transcripts (the JSON of Whisper) as the texts of clips."""

import dataclasses
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

_TIMES = re.compile(r"\s*((?:\d+:)?\d+:\d+[.,]\d+)\s*-->\s*((?:\d+:)?\d+:\d+[.,]\d+)")
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")  # of WebVTT, and of SubStation Alpha in .srt files


@dataclasses.dataclass(frozen=True)
class Cue:
    """A text that is spoken or shown from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def read_transcript(path: Path) -> list[Cue]:
    """Returns the cues of a *.srt, *.vtt or *.json file, in the order of their times.

    Raises:
        ValueError: The file is missing, not UTF-8 or UTF-16, or has no cues.
    """
    readers = {".srt": _read_subtitles, ".vtt": _read_subtitles, ".json": _read_whisper}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: a transcript is a file *.srt, *.vtt or, as Whisper writes it, *.json")
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
        cues = readers[path.suffix.lower()](text)
    except FileNotFoundError as error:
        raise ValueError(f"transcript {path.absolute()} not found") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"its `segments` have start, end and text ({error!r})"
        raise ValueError(f"{path} is not a transcript of Whisper: {reason}") from error
    if not cues:
        raise ValueError(f"{path} has no texts with times, such as 00:01:02.500 --> 00:01:04.000")
    return sorted(cues, key=lambda cue: (cue.start, cue.end))


def clip_text(cues: Sequence[Cue], start: float, end: float) -> str:
    """Returns the text of the cues that overlap the clip from `start` to `end`, each text once in a row."""
    texts = [cue.text for cue in cues if cue.start < end and cue.end > start]
    return " ".join(text for i, text in enumerate(texts) if text and (i == 0 or text != texts[i - 1]))


def _read_subtitles(content: str) -> list[Cue]:
    cues = []
    for block in re.split(r"\n\s*\n", content.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.split("\n")
        for number, line in enumerate(lines):
            if match := _TIMES.match(line):
                text = html.unescape(_MARKUP.sub("", " ".join(lines[number + 1 :])))
                cues.append(Cue(_seconds(match[1]), _seconds(match[2]), " ".join(text.split())))
                break
    return cues


def _seconds(time: str) -> float:
    """Returns 3723.5 for 01:02:03,500 and 123.5 for 02:03.500."""
    total = 0.0
    for part in time.replace(",", ".").split(":"):
        total = 60 * total + float(part)
    return total


def _read_whisper(content: str) -> list[Cue]:
    segments = json.loads(content)["segments"]
    return [Cue(float(part["start"]), float(part["end"]), " ".join(part["text"].split())) for part in segments]

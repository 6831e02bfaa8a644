import json

import pytest

from data_prep.videos.segments import Segment, cut
from data_prep.videos.transcripts import Cue, clip_text, read_transcript

CUES = [Cue(1.0, 3.5, "Hello there"), Cue(62.25, 64.0, "A & B")]
SRT = """\ufeff1
00:00:01,000 --> 00:00:03,500
<i>Hello</i>
there

2
00:01:02,250 --> 00:01:04,000
A &amp; B
""".replace("\n", "\r\n")
VTT = """WEBVTT

NOTE made by hand

00:01.000 --> 00:03.500 align:start
<v Ann>Hello there

last
01:02.250 --> 01:04.000
A &amp; B
"""
WHISPER = json.dumps({"text": "", "segments": [{"start": c.start, "end": c.end, "text": f" {c.text}"} for c in CUES]})


@pytest.mark.parametrize(("suffix", "content"), [(".srt", SRT), (".vtt", VTT), (".json", WHISPER)])
def test_transcripts_of_all_formats_are_read(tmp_path, suffix, content):
    path = tmp_path / f"show{suffix}"
    path.write_text(content, encoding="utf-8", newline="")
    assert read_transcript(path) == CUES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: a transcript is a file \*\.srt"),
        ("a.srt", b"Hello", "has no texts with times, such as"),
        ("a.vtt", b"\xff\x00", "is not UTF-8"),
        ("a.json", b"{}", "is not a transcript of Whisper"),
    ],
)
def test_other_transcripts_are_errors(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_transcript(tmp_path / name)


def test_texts_are_those_of_the_cues_that_overlap_a_clip():
    assert clip_text(CUES, 0, 1) == ""
    assert clip_text(CUES, 3, 63) == "Hello there A & B"
    assert clip_text([*CUES, Cue(64.0, 65.0, "A & B")], 62, 70) == "A & B"


def test_clips_overlap_and_the_last_one_ends_with_the_recording():
    assert cut(19.0, length=8, stride=4) == [Segment(0, 8), Segment(4, 12), Segment(8, 16), Segment(11, 19)]
    assert cut(5.0, length=8, stride=4) == [Segment(0, 5)]
    assert cut(16.0, length=8, stride=8) == [Segment(0, 8), Segment(8, 16)]
    with pytest.raises(ValueError, match="stride 9"):
        cut(19.0, length=8, stride=9)


def test_clips_start_and_end_at_near_scene_changes():
    assert cut(16.0, length=8, stride=8, scenes=[7.0, 11.5]) == [Segment(0, 7.0), Segment(7.0, 16)]
    assert Segment(724.0, 3732.0).label == "12:04–1:02:12"

"""Tests of videos in tables: from their rows to the frames in records."""

import json

import pytest
from PIL import Image

from data_prep.build import build
from data_prep.catalog.rejected_lines import Reason
from data_prep.catalog.table_parser import parse_row
from data_prep.download.shard import image_names
from data_prep.records.inputs import Inputs
from data_prep.records.schema import find_record_files, open_files, parse_example
from data_prep.segment import segment
from data_prep.table import build_table_catalog
from data_prep.verify import verify
from data_prep.videos.clip_names import ClipName, parse_clip
from data_prep.videos.reader import FrameChoice, VideoReader
from data_prep.videos.transcripts import Cue
from tests.data_prep.videos.clocks import read_number, write_clock

VIDEO = write_clock([40 * i for i in range(60)])


@pytest.mark.parametrize(
    ("values", "frames"),
    [
        ({"video": "a/b.mp4"}, "a/b.mp4#t=0"),
        ({"video": "a\\b.mp4", "start": 1.5, "end": "4"}, "a/b.mp4#t=1.5,4"),
        (
            {"video": "https://example.org/a.mp4", "start": 2, "end": None, "images": ""},
            "https://example.org/a.mp4#t=2",
        ),
        ({"video": "b.mp4", "images": "a.jpg"}, "a.jpg"),
        ({"video": "../b.mp4"}, Reason.PATH),
        ({"video": "b.mp4", "start": 3, "end": 3}, Reason.TIMES),
        ({"video": "b.mp4", "start": "-1"}, Reason.TIMES),
    ],
)
def test_rows_name_videos_or_clips_of_them(values, frames):
    row = parse_row({"product": "p", "item": "i", **values})
    assert (row if isinstance(row, Reason) else row.images[0][0]) == frames


def test_names_of_clips_are_parsed_as_they_are_written():
    for clip in (ClipName("a#t=b.mp4", 0.0, None), ClipName("a.mp4", 1.25, 30.0)):
        assert parse_clip(str(clip)) == clip
    assert parse_clip("a.jpg") is None


def test_clips_become_records_with_the_times_of_their_frames(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(VIDEO)
    (videos / "broken.mp4").write_bytes(VIDEO[:1000])
    rows = [
        ("p", "whole", "a.mp4", "", "", "train"),
        ("p", "part", "a.mp4", "1", "2", "train"),
        ("p", "bad", "broken.mp4", "", "", "train"),
        ("q", "other", "a.mp4", "0", "1.5", "test"),
    ]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(map(",".join, [("product", "item", "video", "start", "end", "split"), *rows])))
    catalog = build_table_catalog(table, videos, tmp_path / "catalog", domains={"page": "clip"}, report=lambda _: None)
    assert image_names(list(catalog.items("train", "page"))) == ["broken.mp4", "a.mp4"]
    inputs = Inputs(catalog.folder, (videos,), choice=FrameChoice(4))
    summary = build(inputs, tmp_path / "data", processes=1, max_missing=1.0, report=lambda _: None)
    train = summary["splits"]["train"]["page"]
    assert train["items"] == {"in": 3, "kept": 2, "dropped": {"no frames left": 1}}
    assert train["frames"] == {"in": 3, "kept": 8, "dropped": {"not a video": 1}}
    assert train["clips"] == {"clips": 2, "frames": 8, "black": 0, "duplicate": 0}
    [dropped] = (tmp_path / "data/rope/dropped.jsonl").read_text().splitlines()
    assert json.loads(dropped)["image"] == "broken.mp4#t=0"
    records = map(parse_example, open_files(find_record_files(tmp_path / "data")["page"]["train"]))
    found = {json.loads(r.byte_strings("payload")[0])["item"]: r for r in records}
    assert found["part"].integers("frame_times") == [1120, 1360, 1600, 1840]
    assert [read_number(frame) for frame in found["part"].byte_strings("frames")] == [28, 34, 40, 46]
    assert json.loads(found["part"].byte_strings("payload")[0])["video"] == "a.mp4"
    assert verify(tmp_path / "data", processes=1, report=lambda _: None) == 0


def test_an_image_after_a_clip_has_the_time_of_its_last_frame(tmp_path):
    (tmp_path / "a.mp4").write_bytes(VIDEO)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    table = tmp_path / "table.csv"
    rows = ["product,item,image,video,split", "p,i,,a.mp4,train", "p,i,a.png,,train", "q,j,a.png,,test"]
    table.write_text("\n".join(rows))
    catalog = build_table_catalog(
        table, tmp_path, tmp_path / "catalog", domains={"page": "clip"}, report=lambda _: None
    )
    inputs = Inputs(catalog.folder, (tmp_path,), choice=FrameChoice(2))
    build(inputs, tmp_path / "data", processes=1, report=lambda _: None)
    [record] = map(parse_example, open_files(find_record_files(tmp_path / "data")["page"]["train"]))
    assert record.integers("frame_times") == [600, 1800, 1800]
    assert record.byte_strings("frames")[2] == (tmp_path / "a.png").read_bytes()
    assert verify(tmp_path / "data", processes=1, report=lambda _: None) == 0


def test_segments_are_rows_of_a_table(tmp_path):
    (tmp_path / "day1").mkdir()
    (tmp_path / "day1/show.mp4").write_bytes(VIDEO)
    with VideoReader(1) as reader:
        video, out = tmp_path / "day1/show.mp4", tmp_path / "show.csv"
        cues = [Cue(0.2, 0.9, "Hello"), Cue(1.6, 2.0, "there")]
        assert segment(reader, video, out, length=1, stride=0.7, by_scenes=False, transcript=cues) == 3
    assert out.read_text().splitlines() == [
        "product,domain,item,text,video,start,end",
        "day1/show@00:00:00,live,day1/show@00:00:00,Hello,day1/show.mp4,0.000,1.000",
        "day1/show@00:00:00.700,live,day1/show@00:00:00.700,Hello there,day1/show.mp4,0.700,1.700",
        "day1/show@00:00:01.400,live,day1/show@00:00:01.400,there,day1/show.mp4,1.400,2.400",
    ]
    catalog = build_table_catalog(out, tmp_path, tmp_path / "catalog", domains={"live": "clip"}, report=lambda _: None)
    items = [item for split in catalog.splits for item in catalog.items(split, "live")]
    assert {item.own_id for item in items} == {f"day1/show@00:00:0{time}" for time in ("0", "0.700", "1.400")}


def test_a_table_of_segments_that_is_not_above_the_recording_is_an_error(tmp_path):
    (tmp_path / "show.mp4").write_bytes(b"not decoded")
    with VideoReader(1) as reader, pytest.raises(ValueError, match=f"write it into {tmp_path}, the folder of the rec"):
        segment(reader, tmp_path / "show.mp4", tmp_path / "tables/show.csv")
    assert not (tmp_path / "tables").exists()

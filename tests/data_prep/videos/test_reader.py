"""Tests of reading frames: test videos show the number of each frame, which is compared with the times asked for."""

import bisect
import os

import numpy as np
import pytest
import simplejpeg

from data_prep.videos.reader import FrameChoice, VideoError, VideoProblem, VideoReader
from tests.data_prep.videos.broken import TIMES, broken_files
from tests.data_prep.videos.clocks import cut_start, draw, mutate, read_number, turn, write_clock

VARIABLE = np.cumsum([0, *np.random.default_rng(0).choice([20, 40, 100, 700], 59)]).tolist()
SLOW = [1000 * i for i in range(100)]  # with gaps that are skipped by seeks
EVERY = FrameChoice(9, skip_duplicates=False)


@pytest.fixture(scope="module")
def reader():
    with VideoReader(1, seconds=10) as reader:
        yield reader


def numbers(frames) -> list[int]:
    return [read_number(frame) for frame in frames.frames]


@pytest.mark.parametrize(
    ("times", "options"),
    [
        pytest.param(TIMES, {}, id="constant rate with B-frames"),
        pytest.param(VARIABLE, {}, id="variable rate"),
        pytest.param(VARIABLE, {"container": "mkv"}, id="mkv"),
        pytest.param(TIMES, {"options": {"x264-params": "open-gop=1"}}, id="open groups of pictures"),
        pytest.param(TIMES, {"options": {"bf": "0"}}, id="without B-frames"),
        pytest.param([5000 + time for time in TIMES], {"container": "mkv"}, id="starts late"),
        pytest.param(TIMES, {"pixels": "yuv420p10le"}, id="ten bits"),
        pytest.param(TIMES, {"pixels": "yuv444p", "size": (97, 131)}, id="odd size"),
        pytest.param(TIMES, {"container": "mov", "codec": "mjpeg", "pixels": "yuvj420p"}, id="mov of JPEGs"),
        pytest.param(TIMES, {"container": "webm", "codec": "libvpx"}, id="webm"),
        pytest.param(TIMES[:40], {"container": "gif", "codec": "gif", "pixels": "rgb8"}, id="gif"),
        pytest.param(SLOW, {}, id="seeks"),
        pytest.param(SLOW, {"group": 1000}, id="seeks without keyframes"),
        pytest.param(SLOW, {"container": "mkv"}, id="seeks in mkv"),
    ],
)
def test_frames_are_those_shown_in_the_middle_of_equal_parts(reader, times, options):
    found = reader.read(write_clock(times, **options), EVERY)
    from_start = np.array(times) - times[0]
    middles = 1000 * (np.arange(9) + 0.5) * found.duration / 9
    shown = dict.fromkeys(bisect.bisect_right(from_start, middle + 1e-3) - 1 for middle in middles)
    assert numbers(found) == list(shown)
    assert np.allclose(found.times, from_start[list(shown)] / 1000, atol=1e-3)
    assert found.duration >= from_start[-1] / 1000


def test_parts_rates_and_sizes_are_as_chosen(reader):
    video = write_clock(TIMES)
    assert numbers(reader.read(video, FrameChoice(2), 1.0, 2.0)) == [31, 43]
    assert numbers(reader.read(video, FrameChoice(fps=5), 1.9, 9.0)) == [47, 52, 57]
    [small] = reader.read(video, FrameChoice(1, max_side=64)).frames
    assert simplejpeg.decode_jpeg(small).shape == (48, 64, 3)
    with pytest.raises(VideoError, match=r"has no frames in this range \(from 3 to 2.4 s of 2.4 s\); choose start"):
        reader.read(video, EVERY, 3.0)


def test_edit_lists_and_rotations_are_followed(reader):
    video = write_clock(TIMES)
    edited = reader.read(cut_start(video, 1000), FrameChoice(3))
    assert numbers(edited) == [25 + 5, 25 + 17, 25 + 29]
    assert np.allclose(edited.times, [0.2, 0.68, 1.16], atol=0.05)
    pixels = simplejpeg.decode_jpeg(reader.read(turn(video), FrameChoice(1)).frames[0])
    assert np.abs(pixels - np.rot90(draw(30, 96, 128), -1).astype(float)).mean() < 8


def test_black_frames_and_duplicates_are_skipped_and_counted(reader):
    black, other = np.zeros((96, 128, 3), np.uint8), [draw(number, 96, 128) for number in (5, 9)]
    pictures = [black] * 5 + [other[0]] * 5 + [other[1]] * 5 + [other[0]] * 5
    video = write_clock(TIMES[:20], pictures=pictures, group=5)
    found = reader.read(video, FrameChoice(20))
    assert numbers(found) == [5, 9, 5]
    assert (found.black, found.duplicates) == (5, 12)
    assert len(reader.read(video, FrameChoice(20, skip_black=False, skip_duplicates=False)).frames) == 20
    with pytest.raises(VideoError, match="has only black frames"):
        reader.read(video, FrameChoice(4), 0, 0.15)


def test_scenes_are_found_and_their_middles_taken(reader):
    red, blue = np.full((96, 128, 3), (200, 30, 30), np.uint8), np.full((96, 128, 3), (30, 30, 200), np.uint8)
    video = write_clock([100 * i for i in range(100)], pictures=[red] * 40 + [blue] * 60)
    assert reader.scenes(video) == pytest.approx([4.0], abs=0.5)
    assert reader.read(video, FrameChoice(scenes=True)).times == pytest.approx([2.0, 7.0], abs=0.3)


def test_broken_and_hostile_files_are_reported_by_name(reader, tmp_path):
    files = list(broken_files())
    assert len(files) >= 20
    for number, (_, data, _) in enumerate(files):
        (tmp_path / f"{number}.mp4").write_bytes(data)
    os.mkfifo(tmp_path / "pipe.mp4")
    paths = [tmp_path / f"{number}.mp4" for number in range(len(files))]
    results = list(reader.map([(path, None, None) for path in paths], FrameChoice(4)))
    for (name, _, problems), path, result in zip(files, paths, results, strict=True):
        assert isinstance(result, VideoError), name
        assert result.problem in problems, f"{name}: {result}"
        assert str(result).startswith(f"{path}: {result.problem}")
    for path, problem in (("pipe.mp4", "not a video"), ("none.mp4", "missing file"), ("", "not a video")):
        with pytest.raises(VideoError, match=problem):
            reader.read(tmp_path / path)
    with pytest.raises(VideoError, match="is a URL; download the file first"):
        reader.read("https://example.org/a.mp4")


def test_mutated_files_give_frames_or_a_reason(reader):
    rng, video = np.random.default_rng(1), write_clock(TIMES)
    results = list(reader.map([(mutate(video, rng), None, None) for _ in range(100)], FrameChoice(4)))
    assert len(results) == 100
    assert all(isinstance(result, VideoError) or result.frames for result in results)
    assert VideoProblem.TOO_SLOW not in {result.problem for result in results if isinstance(result, VideoError)}


def test_workers_that_hang_crash_or_need_too_much_are_replaced():
    video, large = write_clock(TIMES), write_clock([0, 40], size=(2160, 3840), codec="mpeg4")
    with (
        VideoReader(1, memory_bytes=200 << 20) as reader,
        pytest.raises(VideoError, match=r"takes too much memory|crashes the decoder|does not decode"),
    ):
        reader.read(large, FrameChoice(2, max_side=None))
    with VideoReader(1) as reader:
        reader._seconds = 1e-6
        with pytest.raises(VideoError, match=r"takes too long to decode \(more than 1e-06 s\)"):
            reader.read(video)
        reader._seconds = 10.0
        assert numbers(reader.read(video, FrameChoice(1))) == [30]
        (worker,) = reader._idle.queue
        worker._process.kill()
        with pytest.raises(VideoError, match=r"crashes the decoder \(exit code -9\)"):
            reader.read(video)
        assert numbers(reader.read(video, FrameChoice(1))) == [30]


@pytest.mark.parametrize(
    "wrong", [{"frames_per_clip": 0}, {"fps": 0.0}, {"fps": 1.0, "scenes": True}, {"quality": 101}]
)
def test_choices_out_of_range_are_errors(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FrameChoice(**wrong)

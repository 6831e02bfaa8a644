"""Your own items are embedded like records in evaluation, by a run and by its export."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from cope_jax import Embedder
from cope_jax.data.records import open_records
from cope_jax.evaluation.embed_items import load_run
from cope_jax.export import export_run
from cope_jax.runs.config_file import load_config
from cope_jax.runs.config_validation import replace_fields
from cope_jax.search.embedder import VideoPart, resize_picture
from data_prep.common.domains import DOMAINS
from data_prep.synthetic.videos import encode
from data_prep.videos.reader import VideoReader

ROOT = Path(__file__).parents[3]
ROWS = 13  # more than a batch of eight, and not a multiple


@pytest.fixture(scope="module")
def embedders(workdir, tmp_path_factory):
    """Embedders of the run and of its export."""
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    export_run(workdir, folder)
    return {"workdir": Embedder.from_workdir(workdir), "export": Embedder.from_export(folder)}


@pytest.fixture(scope="module")
def embedder(embedders):
    return embedders["workdir"]


@pytest.fixture(scope="module")
def expected(workdir):
    """The first items of each domain and their embeddings in evaluation, on eight devices."""
    config = load_config(workdir)
    records = open_records(config.data.data_dir, config.data.eval_split)
    run = load_run(config, workdir, 6)
    return {
        domain: (
            [records.items[domain][row] for row in range(ROWS)],
            run.embed_rows(domain, range(ROWS)).vectors,
        )
        for domain in DOMAINS
    }


@pytest.mark.parametrize("source", ["workdir", "export"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_embeddings_equal_those_of_evaluation(embedders, expected, source, domain):
    items, vectors = expected[domain]
    found = embedders[source].embed(domain, frames=[item.frames for item in items], texts=[i.text for i in items])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    assert np.abs(found - vectors[::-1]).max() > 1e-2  # the items differ


def test_another_step_has_other_embeddings(workdir, embedder, expected):
    items, _ = expected["page"]
    four = Embedder.from_workdir(workdir, step=4).embed("page", images=[items[0].frames[0]])
    assert np.abs(four - embedder.embed("page", images=[items[0].frames[0]])).max() > 1e-4


def test_all_forms_of_a_picture_have_the_same_embedding(embedder, tmp_path):
    """PNG is lossless, so all forms have the same pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (tmp_path / "photo.png").write_bytes(buffer.getvalue())
    forms = [pixels, Image.fromarray(pixels), buffer.getvalue(), tmp_path / "photo.png", str(tmp_path / "photo.png")]
    vectors = embedder.embed("page", images=forms)
    np.testing.assert_allclose(vectors, np.broadcast_to(vectors[:1], vectors.shape), atol=1e-6)
    assert np.abs(embedder.embed("page", images=[255 - pixels]) - vectors[0][None]).max() > 1e-3


def test_frames_are_chosen_as_in_evaluation(embedder):
    """Three of seven, floor((2i+1)·7/6): 1, 3, and 5. The others are not read."""
    clip = list(np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8))
    holes = [frame if i in (1, 3, 5) else b"unread" for i, frame in enumerate(clip)]
    found = embedder.embed("video", frames=[clip, holes, clip[1::2]])
    np.testing.assert_allclose(found[1:], np.stack([found[0]] * 2), atol=1e-6)


def test_missing_modalities_are_masked(embedder):
    """A batch has an item with a picture only, one with a text only, and one with both."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mixed = embedder.embed("page", images=[pixels, None, pixels], texts=[None, "red", "red"])
    np.testing.assert_allclose(embedder.embed("page", images=[pixels]), mixed[:1], atol=1e-6)
    np.testing.assert_allclose(embedder.embed("page", texts=["red"]), mixed[1:2], atol=1e-6)
    assert np.abs(mixed[2] - mixed[:2].mean(axis=0)).max() > 1e-3
    assert embedder.embed("live", texts=[]).shape == (0, 16)


PIXELS = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("domain", "items", "message"),
    [
        ("shop", {"texts": ["a"]}, "unknown domain 'shop': choose one of page, video, live"),
        ("page", {}, "nothing to embed: give images, frames, or texts of the page items"),
        ("page", {"images": [PIXELS], "frames": [[PIXELS]]}, "both images and frames are given"),
        ("page", {"images": [PIXELS] * 3, "texts": ["a"]}, "counts differ: 3 images, 1 texts"),
        ("video", {"frames": [[PIXELS], []]}, "video item 1 has nothing to embed$"),
        ("page", {"images": [PIXELS, "/no/x.jpg"]}, "page item 1: /no/x.jpg cannot be read: No such file"),
        ("page", {"images": [b"GIF89a"]}, "page item 0: picture 0: 6 bytes that start with b'GIF89a' are not an image"),
        ("live", {"frames": [[PIXELS, PIXELS[0]]]}, r"live item 0: picture 1 is uint8\[8, 3\]; it must be uint8\[H, W"),
        ("page", {"images": [PIXELS.astype(float)]}, r"picture 0 is float64\[8, 8, 3\]"),
        ("page", {"texts": "red dress"}, "texts is of type str; it must be a list with one text per item"),
        ("page", {"images": "a.jpg"}, "images is of type str; it must be a list with one picture per item"),
        ("page", {"images": b"abc"}, "images is of type bytes; it must be a list"),
        ("page", {"images": Path("a.jpg")}, "images is of type PosixPath; it must be a list"),
        ("page", {"images": PIXELS}, "images is of type ndarray; it must be a list"),
        ("page", {"images": Image.fromarray(PIXELS)}, "images is of type Image; it must be a list"),
        ("page", {"images": io.BytesIO(b"abc")}, "images is of type BytesIO; it must be a list"),
        (
            "page",
            {"images": [io.BytesIO(b"abc")]},
            "picture 0 is of type BytesIO; it must be a path, the bytes of a file",
        ),
        ("page", {"images": [["a.jpg"]]}, "picture 0 is of type list; it must be a path"),
        (
            "video",
            {"frames": "clip.mp4"},
            "frames is of type str; it must be a list with a list of pictures or a video",
        ),
        ("video", {"frames": ["/no/clip.mp4"]}, "video item 0: /no/clip.mp4: missing file; check its path"),
        ("video", {"frames": ["https://a.b/c.mp4"]}, "https://a.b/c.mp4: is a URL; download the file first"),
        (
            "video",
            {"frames": [[PIXELS], PIXELS]},
            r"frames\[1\] is of type ndarray; it must be a list with the pictures",
        ),
        ("page", {"texts": ["a", 7]}, "the text of page item 1 is of type int; it must be a string, or None"),
        ("page", {"images": ["https://a.b/c.jpg"]}, "https://a.b/c.jpg is a URL; download it first, and give its path"),
        ("page", {"images": [Path("https://a.b/c.jpg")]}, "https:/a.b/c.jpg is a URL; download it first"),
        ("page", {"images": ["data:image/png;base64,iVBO"]}, "data:image/png;base64,iVBO is a URL; download it"),
        ("page", {"images": iter([PIXELS]), "texts": iter("ab")}, "counts differ: after 1 items, there are only texts"),
        ("page", {"texts": ["a"], "batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ("page", {"texts": ["a"], "on_error": "skip"}, "on_error is 'skip': choose 'raise' or 'none'"),
        ("page", {"texts": {"b", "a"}}, "texts is of type set; it must be a list"),
        ("page", {"texts": 5}, "texts is of type int; it must be a list"),
    ],
)
def test_invalid_arguments(embedder, domain, items, message):
    with pytest.raises(ValueError, match=message):
        embedder.embed(domain, **items)


@pytest.fixture(scope="module")
def show(tmp_path_factory):
    """A video of five seconds with another picture in each."""
    colors = np.random.default_rng(5).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    path = tmp_path_factory.mktemp("show") / "show.mp4"
    encode(path, (simplejpeg.encode_jpeg(picture) for picture in colors))
    return path


def test_a_video_is_embedded_as_its_frames(embedder, show):
    """In any form, alone or with pictures of other items; a part of it has other frames."""
    with VideoReader(processes=1) as reader:
        frames = reader.read(show).frames
    assert len(frames) == 5
    forms = [list(frames), show, str(show), show.read_bytes(), VideoPart(show), VideoPart(show, 0, 2)]
    vectors = embedder.embed("video", frames=forms, texts=["red"] * len(forms))
    np.testing.assert_allclose(vectors[1:5], vectors[:1].repeat(4, 0), atol=1e-6)
    np.testing.assert_allclose(vectors[5], embedder.embed("video", frames=[frames[:2]], texts=["red"])[0], atol=1e-6)
    assert np.abs(vectors[5] - vectors[0]).max() > 1e-3


def test_segments_of_a_recording(embedder, show, tmp_path):
    (tmp_path / "show.srt").write_text("1\n00:00:03,200 --> 00:00:03,800\nred dress\n")
    found = embedder.embed_segments(show, length=2, stride=1.5, transcript=tmp_path / "show.srt")
    assert found.starts.tolist() == [0, 1.5, 3]
    assert found.ends.tolist() == [2, 3.5, 5]
    parts = [VideoPart(show, start, end) for start, end in zip(found.starts, found.ends, strict=True)]
    wanted = embedder.embed("live", frames=parts, texts=["", "red dress", "red dress"])
    np.testing.assert_allclose(found.vectors, wanted, atol=1e-6)
    silent = embedder.embed_segments(str(show), domain="video", length=2, stride=1.5)
    np.testing.assert_allclose(silent.vectors, embedder.embed("video", frames=parts), atol=1e-6)


def test_generators_are_lists(embedder):
    found = embedder.embed("video", frames=((frame for frame in [PIXELS]) for _ in range(3)), texts=iter("abc"))
    np.testing.assert_array_equal(found, embedder.embed("video", frames=[[PIXELS]] * 3, texts=["a", "b", "c"]))


@pytest.fixture
def calls(embedder):
    """An embedder whose program returns the number of tokens, and the batch sizes that it is called with."""
    sizes = []

    def program(domain, inputs):
        sizes.append(len(inputs["text"]))
        assert {len(value) for value in inputs.values()} == {sizes[-1]}
        return np.eye(16, dtype=np.float32)[(inputs["text"] > 0).sum(1)]

    return Embedder(embedder.config, embedder.tokenizer, program), sizes


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1]), (2, [8]), (9, [8, 1]), (20, [20]), (21, [20, 1]), (39, [20, 8, 8, 8])]
)
def test_batches_have_three_sizes(calls, count, expected):
    counting, sizes = calls
    texts = ["a" + " a" * (i % 5) for i in range(count)]
    found = counting.embed("page", texts=texts, batch_size=20)
    assert sizes == expected
    assert found.argmax(1).tolist() == [3 + i % 5 for i in range(count)]


def test_generators_are_read_in_batches(calls):
    counting, sizes = calls
    batches_before = []
    texts = (batches_before.append(len(sizes)) or "a" for _ in range(12))
    assert len(counting.embed("page", texts=texts, batch_size=4)) == 12
    assert batches_before == [0] * 4 + [1] * 4 + [2] * 4


def test_warming_up_compiles_all_sizes_of_all_domains(calls):
    counting, sizes = calls
    counting.warm_up(batch_size=20)
    assert sizes == [1, 8, 20] * 3
    sizes.clear()
    counting.warm_up("live", batch_size=1)
    assert sizes == [1]


def test_items_that_cannot_be_embedded_are_nan_on_request(embedder):
    images = [PIXELS, "/no/x.jpg", None, PIXELS, b"GIF89a"]
    with pytest.warns(UserWarning, match="3 of 5 page items .* are NaN, first page item 1: /no/x.jpg cannot be read"):
        found = embedder.embed("page", images=iter(images), on_error="none", batch_size=2)
    assert np.isnan(found).all(1).tolist() == [False, True, True, False, True]
    np.testing.assert_allclose(found[[0, 3]], embedder.embed("page", images=[PIXELS] * 2), atol=1e-6)


def test_progress_and_similarity(embedder, capsys):
    vectors = embedder.embed("page", texts=["red", "blue", "green"], show_progress_bar=True)
    assert "page: 3/3 items" in capsys.readouterr().err
    expected = [[a @ b for b in vectors[:2]] for a in vectors]
    np.testing.assert_allclose(Embedder.similarity(vectors, vectors[:2]), expected, atol=1e-6)


def test_text_alone_needs_a_model_that_reads_texts(embedder):
    config = replace_fields(embedder.config, {"model.text_domains": ("page",)})
    no_texts = Embedder(config, embedder.tokenizer, embedder.program)
    with pytest.raises(ValueError, match="video item 0 has nothing to embed: the model does not read video texts"):
        no_texts.embed("video", texts=["red"])


def test_unknown_step(workdir):
    with pytest.raises(ValueError, match="step is 'newest'; it must be 'latest', 'best', or a number"):
        Embedder.from_workdir(workdir, step="newest")


def test_importing_the_package_imports_neither_jax_nor_numpy():
    code = "import sys, cope_jax; print({'jax', 'numpy'} & set(sys.modules), hasattr(cope_jax, 'Embeder'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set() False\n", done.stderr


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_in_all_forms(tmp_path, orientation):
    gradient = np.stack(np.broadcast_arrays(np.arange(32) * 8, 10 * np.arange(24)[:, None], 40), axis=-1)
    exif, encoded = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(gradient.astype(np.uint8)).save(encoded, "JPEG", exif=exif, quality=95)
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded.getvalue())
    with Image.open(path) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
        for photo in (path, path.read_bytes(), opened):
            # The tolerance is wide because a JPEG is decoded at half its size; a wrong turn differs by 100 and more.
            np.testing.assert_allclose(
                resize_picture(photo, 12, 0).astype(int), resize_picture(upright, 12, 0), atol=16
            )

"""Views of images: crop, resize, flip and color jitter."""

import io
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from cope_jax.data.images import (
    RESIZES,
    WHOLE,
    EvalTransform,
    TrainTransform,
    crop_resize,
    jitter_color,
    limit_opencv_threads,
    random_box,
)


def picture(height: int, width: int) -> Image.Image:
    """A smooth colorful picture without symmetry."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    red = 127 + 120 * np.sin(7 * x + 3 * y)
    green = 255 * x * (1 - y)
    blue = 127 + 120 * np.cos(5 * y - 4 * x * x)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


@pytest.mark.parametrize("side", [90, 400])  # decoded in full and at a reduced scale
def test_crop_matches_pillows_crop_of_the_whole_image(side):
    image = picture(side, side * 3 // 2)
    box = (0.25, 0.1, 0.5, 0.8)
    crop = image.crop((round(0.1 * image.width), round(0.25 * side), round(0.9 * image.width), round(0.75 * side)))
    reference = np.asarray(crop.resize((32, 32), Image.Resampling.LANCZOS)).astype(int)
    frame = crop_resize(encoded(image), box, 32)
    assert frame.shape == (32, 32, 3)
    # LANCZOS and bilinear resizing, with and without JPEG, are close except at the border.
    assert np.abs(frame - reference)[2:-2, 2:-2].max() <= 6
    assert abs(frame.mean() - reference.mean()) < 0.5


def test_resizing_is_antialiased():
    stripes = Image.fromarray(
        np.tile(np.array([0, 255], np.uint8)[:, None], (60, 120)).repeat(1)[: 120 * 120].reshape(120, 120)
    )
    frame = crop_resize(encoded(stripes.convert("RGB"), "PNG"), WHOLE, 15)
    np.testing.assert_allclose(frame, 127.5, atol=12)


def test_eval_view_ignores_the_aspect_ratio():
    image = picture(60, 120)
    frames = EvalTransform(30)([encoded(image), encoded(picture(40, 40))])
    assert frames.shape == (2, 30, 30, 3)
    reference = np.asarray(image.resize((30, 30), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(frames[0] - reference)[1:-1, 1:-1].max() <= 6


def test_frames_of_different_sizes_get_the_same_crop():
    small, large = encoded(picture(60, 80), "PNG"), encoded(picture(120, 160), "PNG")
    transform = TrainTransform(24, flip=True, color_jitter=0.3)
    crops = [transform([small, small, large], np.random.default_rng(seed)).astype(int) for seed in range(12)]
    for clip in crops:
        np.testing.assert_array_equal(clip[0], clip[1])
        assert np.abs(clip[0] - clip[2]).max() < 12
    assert np.abs(crops[0][0] - crops[1][0]).max() > 20  # the next clip gets another crop


def test_the_central_square_of_an_image_is_resized_like_by_clip():
    wide = np.zeros((30, 50, 3), np.uint8)
    wide[:, 10:40] = np.random.default_rng(0).integers(0, 256, (30, 30, 3))
    for pixels in (wide, wide.swapaxes(0, 1)):
        (frame,) = EvalTransform(30, RESIZES["crop"])([encoded(Image.fromarray(pixels), "PNG")])
        np.testing.assert_array_equal(frame, pixels[:, 10:40] if pixels is wide else pixels[10:40])


def test_zoom_stretches_the_central_half_of_an_image():
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[9:51, 9:51] = np.random.default_rng(0).integers(0, 256, (42, 42, 3))
    (frame,) = EvalTransform(42, RESIZES["zoom"])([encoded(Image.fromarray(pixels), "PNG")])
    np.testing.assert_array_equal(frame, pixels[9:51, 9:51])
    (wide,) = EvalTransform(42, RESIZES["zoom"])([encoded(Image.fromarray(pixels.repeat(2, axis=1)), "PNG")])
    np.testing.assert_allclose(wide.mean(axis=(0, 1)), frame.mean(axis=(0, 1)), atol=1)


@pytest.mark.parametrize("transform", [TrainTransform(24, color_jitter=0.3), EvalTransform(24)])
def test_frames_are_written_to_out(transform):
    data = [encoded(picture(60, 80)), encoded(picture(50, 40), "PNG")]
    batch = np.zeros((3, 2, 24, 24, 3), np.uint8)
    for seed in range(8):  # some are mirrored
        returned = transform(data, np.random.default_rng(seed), batch[1])
        np.testing.assert_array_equal(batch[1], transform(data, np.random.default_rng(seed)))
        assert np.shares_memory(returned, batch)
    assert not batch[[0, 2]].any()


def test_half_of_the_clips_are_mirrored_as_a_whole():
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:, :16, 0] = 200
    data = encoded(Image.fromarray(halves), "PNG")
    left_is_red = []
    for seed in range(200):
        frames = TrainTransform(16)([data, data, data], np.random.default_rng(seed))
        red = frames[:, 8, 1, 0] > 100
        assert red.all() or not red.any()
        left_is_red.append(red[0])
    assert 0.4 < np.mean(left_is_red) < 0.6
    still = [TrainTransform(16, flip=False)([data], np.random.default_rng(seed))[0, 8, 1, 0] for seed in range(40)]
    assert min(still) > 100


def test_random_boxes_are_inside_the_image_with_area_and_ratio_in_range():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(300, 400, scale=(0.3, 0.8), ratio=(3 / 4, 4 / 3), rng=rng) for _ in range(500)])
    top, left, height, width = boxes.T
    assert boxes.min() >= 0
    assert (top + height).max() <= 1 + 1e-12
    assert (left + width).max() <= 1 + 1e-12
    area, shape = height * width, width * 400 / (height * 300)
    assert 0.3 <= area.min() < 0.33
    assert 0.75 < area.max() <= 0.8
    assert 3 / 4 - 1e-9 <= shape.min() < 0.78
    assert 1.28 < shape.max() <= 4 / 3 + 1e-9
    assert np.corrcoef(top, left)[0, 1] < 0.2  # independent


def test_the_center_of_a_very_long_image_is_taken_if_no_box_fits():
    box = random_box(100, 1000, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3), rng=np.random.default_rng(0))
    np.testing.assert_allclose(box, [0, (1 - 4 / 30) / 2, 1, 4 / 30])
    box = random_box(1000, 100, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3), rng=np.random.default_rng(0))
    np.testing.assert_allclose(box, [(1 - 4 / 30) / 2, 0, 4 / 30, 1])


def test_color_jitter_is_brightness_then_contrast_then_saturation_then_hue():
    clip = np.stack([np.asarray(picture(9, 7)), 60 + np.asarray(picture(9, 7)) // 2])
    changed = jitter_color(clip, 0.2, np.random.default_rng(7))
    draws = np.random.default_rng(7)
    brightness, contrast, saturation = draws.uniform(0.8, 1.2, size=3)
    angle = draws.uniform(-1, 1) * 0.01 * 2 * math.pi
    luma = [0.299, 0.587, 0.114]
    mean = sum(w * (brightness * clip[..., c]).mean() for c, w in enumerate(luma))
    # A rotation about the gray axis, by its three distinct entries.
    a = (1 + 2 * math.cos(angle)) / 3
    b = (1 - math.cos(angle)) / 3 - math.sin(angle) / math.sqrt(3)
    c = (1 - math.cos(angle)) / 3 + math.sin(angle) / math.sqrt(3)
    for place in np.ndindex(clip.shape[:-1]):
        pixel = [mean + contrast * (brightness * float(v) - mean) for v in clip[place]]
        gray = sum(w * v for w, v in zip(luma, pixel, strict=True))
        r, g, bl = (gray + saturation * (v - gray) for v in pixel)
        turned = [a * r + b * g + c * bl, c * r + a * g + b * bl, b * r + c * g + a * bl]
        np.testing.assert_allclose(changed[place], np.clip(turned, 0, 255), atol=0.51)


def test_color_jitter_keeps_grays_gray_and_zero_disables_it():
    gray = encoded(Image.new("RGB", (20, 20), (90, 90, 90)), "PNG")
    frames = TrainTransform(8, color_jitter=0.5)([gray], np.random.default_rng(1)).astype(int)
    assert np.ptp(frames, axis=-1).max() <= 1
    assert abs(frames.mean() - 90) > 2
    np.testing.assert_array_equal(TrainTransform(8)([gray], np.random.default_rng(1)), 90)


@pytest.mark.parametrize("transform", [TrainTransform(8), EvalTransform(8)])
@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"\xff\xd8\xff\xe0broken", encoded(picture(30, 30), "PNG")[:200]]
)
def test_corrupt_images_are_value_errors(transform, data):
    with pytest.raises(ValueError, match=r"image|JPEG|decode"):
        transform([data], np.random.default_rng(0))


def test_opencv_starts_no_threads():
    limit_opencv_threads()
    assert cv2.getNumThreads() == 1

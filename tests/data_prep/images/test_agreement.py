"""An image is valid for the build if and only if it decodes in training."""

import io
import random
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from data_prep.images.decoding import (
    ImageProblem,
    InvalidImageError,
    decode_rgb,
    find_problem,
    image_size,
    open_image,
    upright_pixels,
)
from tests.data_prep.images.test_odd_images import flat_jpeg, samsung

KINDS = [
    *(
        ("JPEG", mode, {"quality": 90} | options)
        for mode in ("RGB", "L", "CMYK")
        for options in ({}, {"progressive": True})
    ),
    *(("JPEG", "RGB", {"quality": 90, "subsampling": sampling}) for sampling in range(3)),
    ("JPEG", "RGB", {"restart_marker_rows": 1}),
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (False, True)),
    *(("GIF", mode, {}) for mode in ("L", "P")),
    *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB")),
    *(("AVIF", mode, {}) for mode in ("RGB", "RGBA")),
    *(("TIFF", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "I")),
    *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate")),
]


def make_images() -> Iterator[tuple[str, bytes]]:
    """Yields labels and more than 700 images: of all formats, sizes and orientations, whole, odd and damaged."""
    rng = random.Random(0)
    for kind, mode, options in KINDS:
        for size in ((1, 1), (37, 23), (16, 90)):
            pixels = np.random.default_rng(len(mode)).integers(
                0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8
            )
            image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
            image = image.convert("L").convert(mode) if mode in ("LA", "I;16", "F", "I") else image.convert(mode)
            exif = Image.Exif()
            exif[0x0112] = rng.randint(1, 8)
            buffer = io.BytesIO()
            image.save(buffer, kind, exif=exif, **options)
            data, label = buffer.getvalue(), f"{kind} {mode} {size} {options}"
            yield label, data
            yield f"{label} and more bytes", data + bytes(9)
            yield f"{label} cut", data[: rng.randrange(len(data))]
            for number in range(3):
                damaged = bytearray(data)
                for _ in range(rng.randint(1, 4)):
                    damaged[rng.randrange(len(data))] = rng.randrange(256)
                yield f"{label} damaged {number}", bytes(damaged)
            if kind == "JPEG":
                yield f"{label} of a phone", samsung(data) if "progressive" not in options else data[:-2]
                yield f"{label} with stray bytes", data[:20] + b"\0\7" + data[20:]
    for samplings in ([(4, 2), (1, 1), (1, 1)], [(3, 1), (1, 1), (1, 1)], [(1, 1)] * 2, [(1, 1)] * 4, [(1, 1)] * 5):
        for frame in (0xC0, 0xC1, 0xC2, 0xC3, 0xC9):
            yield f"{samplings} in {frame:x}", flat_jpeg(samplings, frame=frame)


def test_the_check_and_the_decoder_agree():
    images = list(make_images())
    assert len(images) >= 700
    valid = 0
    for label, data in images:
        problem = find_problem(data)
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of metadata
            for scale in ({}, {"min_height": 8, "min_width": 4}):
                if problem is not None:
                    with pytest.raises(InvalidImageError) as caught:
                        decode_rgb(data, **scale)
                    assert caught.value.problem is problem, label
                    continue
                pixels = decode_rgb(data, **scale)
                assert pixels.dtype == np.uint8, label
                assert pixels.shape[2] == 3, label
                if not scale:
                    assert pixels.shape[:2] == image_size(data), label
            if problem is None:
                valid += 1
                with open_image(data) as image:  # by Pillow alone, for thumbnails
                    thumbnail = upright_pixels(image)
                difference = np.abs(decode_rgb(data).astype(int) - thumbnail)
                assert difference.mean() < 2, label
    assert 300 < valid < len(images) - 200


def test_whole_images_are_valid():
    for label, data in make_images():
        if label.endswith("}"):
            unsupported = "TIFF F" in label or "TIFF I " in label
            assert find_problem(data) is (ImageProblem.UNSUPPORTED if unsupported else None), label

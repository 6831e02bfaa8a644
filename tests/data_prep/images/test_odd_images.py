"""Odd images decode to the RGB that a person would see; invalid ones have a reason."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep.images.decoding import (
    MAX_BYTES,
    MAX_PARTS,
    MAX_PIXELS,
    MAX_SCANS,
    ImageProblem,
    InvalidImageError,
    decode_rgb,
    find_problem,
    image_size,
    open_image,
    upright_pixels,
)

SIDE = 24


def picture() -> Image.Image:
    """A smooth, colorful picture without symmetry, 24 rows of 36 pixels."""
    y, x = np.mgrid[0:SIDE, 0 : SIDE * 3 // 2] / SIDE
    return Image.fromarray(np.stack([60 * x + 100 * y, 200 - 120 * x, 40 + 80 * y], axis=-1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """Returns the pixels of a valid image."""
    assert find_problem(data) is None
    pixels = decode_rgb(data)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*image_size(data), 3)
    return pixels.astype(int)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 2), ("PNG", 0), ("WEBP", 0), ("TIFF", 0), ("AVIF", 9)])
def test_photos_are_turned_upright(kind, tolerance, orientation):
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encode(picture(), kind, exif=exif(orientation), **options)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    np.testing.assert_allclose(decoded(data), wanted, atol=tolerance)
    assert image_size(data) == ((36, 24) if orientation >= 5 else (24, 36))


def test_a_photo_decoded_at_a_reduced_scale_is_turned_upright():
    data = encode(picture().resize((180, 120)), "JPEG", exif=exif(6), quality=95)
    reduced = decode_rgb(data, min_height=90, min_width=40)  # upright, it has 180 rows of 120 pixels
    assert reduced.shape == (90, 60, 3)
    whole = Image.fromarray(decode_rgb(data)).resize((60, 90), Image.Resampling.BOX)
    np.testing.assert_allclose(reduced.astype(int), np.asarray(whole).astype(int), atol=6)


def test_cmyk_jpegs_are_inverted_like_adobes():
    rng = np.random.default_rng(0)
    ink = np.repeat(rng.integers(0, 256, (4, 4, 4), np.uint8), 8, axis=0).repeat(8, axis=1)
    data = encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    cyan, magenta, yellow, black = np.moveaxis(ink.astype(int), -1, 0)
    wanted = np.stack([(255 - color) * (255 - black) / 255 for color in (cyan, magenta, yellow)], axis=-1)
    np.testing.assert_allclose(decoded(data)[4::8, 4::8], wanted[4::8, 4::8], atol=6)
    start = data.index(b"\xff\xee")
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    unmarked = data[:start] + data[start + 2 + length :]  # browsers invert these as well
    np.testing.assert_array_equal(decoded(unmarked), decoded(data))


def test_ycck_jpegs():
    ink = np.zeros((16, 16, 4), np.uint8) + np.array([200, 90, 30, 20], np.uint8)
    red, green, blue = ink[0, 0, :3].astype(float)  # libjpeg converts these as if they were RGB
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    stored = [luma, 128 + 0.564 * (blue - luma), 128 + 0.713 * (red - luma)]
    # Pillow inverts what it writes; inverted once more, the file has these numbers.
    raw = Image.fromarray(
        np.zeros_like(ink) + np.array([*(255 - round(v) for v in stored), ink[0, 0, 3]], np.uint8), "CMYK"
    )
    data = bytearray(encode(raw, "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2  # the transform: YCCK
    white = (255 - 20) / 255
    wanted = [(255 - value) * white for value in (200, 90, 30)]
    np.testing.assert_allclose(decoded(bytes(data))[8, 8], wanted, atol=6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_gray_images_are_gray(kind):
    data = encode(picture().convert("L"), kind, **({"lossless": True} if kind == "WEBP" else {"quality": 95}))
    pixels = decoded(data)
    assert (np.ptp(pixels, axis=-1) == 0).all()
    np.testing.assert_allclose(pixels[:, :, 0], np.asarray(picture().convert("L")).astype(int), atol=2)


def png(width: int, height: int, depth: int, color_type: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG from its raw rows (each after a zero byte) and further chunks."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    chunks = [header, *more, b"IDAT" + zlib.compress(rows), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_pngs_keep_their_high_bytes(color_type, channels):
    values = np.random.default_rng(1).integers(0, 65536, (5, 7, channels), np.uint16)
    if channels in (2, 4):
        values[..., -1] = 65535  # opaque
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    shown = values[..., : 3 if channels >= 3 else 1] >> 8
    np.testing.assert_array_equal(decoded(png(7, 5, 16, color_type, rows)), np.broadcast_to(shown, (5, 7, 3)))


def test_16_bit_gray_with_a_transparent_value_is_opaque():
    rows = b"".join(b"\0" + np.array(row, ">u2").tobytes() for row in ([256, 512, 40000], [0, 65535, 512]))
    pixels = decoded(png(3, 2, 16, 0, rows, b"tRNS" + struct.pack(">H", 512)))
    np.testing.assert_array_equal(pixels[..., 0], [[1, 2, 156], [0, 255, 2]])


def test_transparent_parts_lie_on_white():
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 9, 80, 160, 200, 10, 10])
    palette.paste(2, (4, 0, 8, 6))
    pixels = decoded(encode(palette, "PNG", transparency=2))
    np.testing.assert_array_equal(pixels[:, :4], np.broadcast_to([9, 80, 160], (6, 4, 3)))
    np.testing.assert_array_equal(pixels[:, 4:], 255)
    half = Image.new("RGBA", (4, 4), (0, 0, 200, 128))
    np.testing.assert_allclose(decoded(encode(half, "PNG"))[0, 0], [127, 127, 227], atol=1)
    gray = Image.new("L", (4, 4), 30)
    gray.putpixel((3, 3), 40)
    np.testing.assert_array_equal(decoded(encode(gray, "PNG", transparency=30))[:3], 255)
    np.testing.assert_array_equal(
        decoded(encode(half, "WEBP", lossless=True))[0, 0], decoded(encode(half, "PNG"))[0, 0]
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(kind):
    frames = [Image.new("RGB", (10, 8), color) for color in ((200, 20, 20), (20, 200, 20), (20, 20, 200))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(decoded(data), np.broadcast_to([200, 20, 20], (8, 10, 3)))


@pytest.mark.parametrize("tail", [b"\0" * 9, b"\xff\xd8\xff" + b"another picture" * 9], ids=["padded", "mpo"])
def test_bytes_after_a_jpeg_change_nothing(tail):
    data = encode(picture(), "JPEG", exif=exif(6))
    np.testing.assert_array_equal(decoded(data + tail), decoded(data))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_of_any_mode_becomes_rgb(mode):
    pixels = decoded(encode(picture().convert("L" if mode == "I;16" else mode).convert(mode), "PNG"))
    assert pixels.shape == (24, 36, 3)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (encode(picture(), "JPEG")[:-300], ImageProblem.CORRUPT),
        (encode(picture().convert("CMYK"), "JPEG")[:-300], ImageProblem.CORRUPT),
        (encode(picture(), "JPEG", progressive=True)[:-90], ImageProblem.CORRUPT),
        (encode(picture().convert("P"), "GIF")[:-90], ImageProblem.CORRUPT),
        (encode(picture(), "WEBP", lossless=True)[:-9], ImageProblem.CORRUPT),
        (png(9000, 9000, 8, 2, b"\0"), ImageProblem.TOO_LARGE),
        (png(30000, 30000, 1, 0, b"\0"), ImageProblem.TOO_LARGE),
        (b"GIF89a" + struct.pack("<HH", 65535, 65535) + encode(picture(), "GIF")[10:], ImageProblem.TOO_LARGE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ImageProblem.NOT_AN_IMAGE),
    ],
    ids=lambda value: None if isinstance(value, ImageProblem) else f"{len(value)}_bytes",
)
def test_invalid_images_have_a_reason(data, problem):
    assert find_problem(data) is problem


def test_a_png_without_its_palette_does_not_open():
    """Pillow opens it, and copies of it have a palette: they would show other colors."""
    rows, palette = b"\0\1\2\0\0\1\2\0", b"PLTE" + bytes(range(9))
    assert decoded(png(3, 2, 8, 3, rows, palette))[0].tolist() == [[3, 4, 5], [6, 7, 8], [0, 1, 2]]
    with pytest.raises(InvalidImageError, match="does not decode: no palette"), open_image(png(3, 2, 8, 3, rows)):
        pass


JPEG = encode(picture(), "JPEG", quality=95)
PNG = encode(picture(), "PNG")


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def chunk(name: bytes, data: bytes, *, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(name + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def with_chunk(data: bytes) -> bytes:
    return PNG[:33] + data + PNG[33:]


def samsung(data: bytes) -> bytes:
    """The start of the scan claims no frequencies but the lowest."""
    start = data.index(b"\xff\xda")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data[: end - 3] + b"\0\0\0" + data[end:]


@pytest.mark.parametrize(
    "data",
    [
        JPEG.replace(b"JFIF\0\1\1", b"JFIF\0\2\1"),
        JPEG.replace(b"JFIF\0\1\1", b"JFIF\0\x63\1"),
        samsung(JPEG),
        samsung(JPEG.replace(b"JFIF\0\1\1", b"JFIF\0\2\1")),
        b"\xff\xd8" + b"\0\0\0" + JPEG[2:],  # stray bytes
        JPEG[:20] + b"stray" * 99 + JPEG[20:],
        JPEG[:20] + b"\xff\xff\xff" + JPEG[20:],  # fill bytes
        JPEG[:20] + b"\0\xff\0" + segment(0xFE, b"a comment \xff\xda\xff\xd9") + b"\1" + JPEG[20:],
        JPEG[:20] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\x09") + JPEG[20:],  # an unknown transform
        JPEG[:20] + segment(0xE2, b"ICC_PROFILE\0\2\1 not a profile") + JPEG[20:],
        JPEG[:-2] + b"\0\0" + JPEG[-2:],  # a padded scan
        JPEG + b"\0" * 9,
        JPEG[:-1],  # without the end
        JPEG[:-2],
        with_chunk(chunk(b"eXIf", exif(6).tobytes(), checksum=7)),
        with_chunk(chunk(b"tEXt", b"a\0b", checksum=7)),
        with_chunk(chunk(b"tEXt", b"a\0" + b"b" * (3 << 20))),
        with_chunk(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70 << 20), 9))),
        with_chunk(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(4 << 20)))),
        with_chunk(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(4 << 20)))),
        with_chunk(chunk(b"iCCP", b"broken")),
        with_chunk(chunk(b"gAMA", b"")),
        PNG[:-12],  # without the end
        PNG + b"more",
    ],
    ids=lambda data: f"{data[:3]!r}-{len(data)}-{zlib.crc32(data):08x}",
)
def test_oddities_that_others_ignore_are_no_damage(data):
    wanted = decoded(JPEG if data[:2] == b"\xff\xd8" else PNG)
    np.testing.assert_array_equal(decoded(data), wanted)
    with open_image(data) as image:
        np.testing.assert_allclose(upright_pixels(image).astype(int), wanted, atol=1)


@pytest.mark.parametrize("damage", [lambda data: data[:-99], lambda data: data[:700] + bytes(400) + data[1100:]])
def test_damage_behind_an_odd_header_is_found(damage):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 48, 3), np.uint8))
    data = samsung(encode(image, "JPEG", quality=95))
    assert find_problem(data) is None
    assert find_problem(damage(data)) is ImageProblem.CORRUPT
    with pytest.raises(ValueError, match=r"does not decode: .*(premature end of data|extraneous bytes)"):
        decode_rgb(damage(data))


def flat_jpeg(samplings, *, frame: int = 0xC0, scans: int = 1, side: int = 64) -> bytes:
    """A gray JPEG whose components are sampled (horizontally, vertically); further scans refine nothing."""
    count = len(samplings)
    fields = b"".join(bytes([1 + i, h << 4 | v, 0]) for i, (h, v) in enumerate(samplings))
    table = bytes([1, *[0] * 15, 0])  # one code of one bit
    start = segment(0xDA, bytes([count]) + b"".join(bytes([1 + i, 0]) for i in range(count)) + b"\0\x3f\0")
    rows, columns = (max(sampling[axis] for sampling in samplings) if count > 1 else 1 for axis in (1, 0))
    blocks = sum(h * v for h, v in samplings) if count > 1 else 1
    bits = -(-side // (8 * rows)) * -(-side // (8 * columns)) * blocks * (1 if frame == 0xC2 else 2)
    body = bytes(bits // 8) + bytes([0xFF >> bits % 8] if bits % 8 else [])
    if frame == 0xC2:
        start = start[:-3] + b"\0\0\0"
        refinement = segment(0xDA, b"\1\1\0\1\x3f\0") + b"\x7f" * 8
    else:
        refinement = start + body
    parts = [
        segment(0xDB, b"\0" + bytes([1] * 64)),
        segment(frame, struct.pack(">BHHB", 8, side, side, count) + fields),
    ]
    parts += [segment(0xC4, b"\0" + table), segment(0xC4, b"\x10" + table), start + body, (scans - 1) * refinement]
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


@pytest.mark.parametrize(
    "samplings",
    [
        [(4, 2), (1, 1), (1, 1)],  # 4:1:0
        [(1, 4), (1, 1), (1, 1)],
        [(3, 1), (1, 1), (1, 1)],
        [(2, 1), (1, 2), (1, 1)],
        [(1, 1), (2, 2), (2, 2)],
        [(2, 2)],
    ],
    ids=str,
)
def test_jpegs_of_any_subsampling_decode(samplings):
    np.testing.assert_allclose(decoded(flat_jpeg(samplings)), np.full((64, 64, 3), 128), atol=1)


def test_jpegs_of_too_many_scans_are_not_decoded():
    for scans, problem in ((MAX_SCANS, None), (MAX_SCANS + 1, ImageProblem.TOO_SLOW)):
        assert find_problem(flat_jpeg([(1, 1)], frame=0xC2, scans=scans, side=8)) is problem
    hidden = flat_jpeg([(1, 1)], frame=0xC2, scans=MAX_SCANS + 1, side=8)
    start = hidden.index(b"\xff\xda")
    hidden = hidden[:start] + hidden[start:].replace(b"\xff\xda", segment(0xFE, b"\xff\xd9") + b"\xff\xda", 3)
    assert find_problem(hidden) is ImageProblem.TOO_SLOW
    with pytest.raises(ValueError, match=f"has {MAX_SCANS + 1} scans"):
        decode_rgb(hidden)
    for scans, side, allowed in ((20, 8000, True), (21, 7990, False), (100, 3577, True), (100, 3578, False)):
        large = flat_jpeg([(1, 1)], frame=0xC2, scans=scans, side=64)
        start = large.index(b"\xff\xc2") + 5
        large = large[:start] + struct.pack(">HH", side, side) + large[start + 4 :]
        if allowed:
            assert image_size(large) == (side, side)
        else:
            assert find_problem(large) is ImageProblem.TOO_SLOW


def test_the_decoding_time_is_bounded_by_pixels_scans_and_bytes():
    """The slowest image that was found, noise in 20 scans with arithmetic coding, at 1/64 of the limits."""
    header = segment(0xDB, b"\0" + bytes([1] * 64))
    header += segment(0xCA, struct.pack(">BHHB", 8, 1000, 1000, 3) + b"\1\x11\0\2\x11\0\3\x11\0")
    scans = [segment(0xDA, b"\3\1\0\2\0\3\0\0\0\0")]
    for scan in range(19):
        low = 13 - scan // 3  # the lowest bit of this scan
        scans.append(segment(0xDA, bytes([1, 1 + scan % 3, 0, 1, 63, low + (low + 1 << 4 if scan > 2 else 0)])))
    noise = np.random.default_rng(0).bytes(MAX_BYTES // 64 // 20).replace(b"\xff", b"\0")
    data = b"\xff\xd8" + header + noise.join(scans) + noise + b"\xff\xd9"
    start = time.thread_time()
    assert find_problem(data) is ImageProblem.CORRUPT
    assert 64 * (time.thread_time() - start) < 30  # 6 s on an AMD EPYC


GIF = encode(picture().convert("P"), "GIF")
COMMENTS = b"!\xfe\3abc\0" * MAX_PARTS


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(chunk(b"teSt", b"") * MAX_PARTS),
        with_chunk(chunk(b"IDAT", b"") * (MAX_PARTS - 9)),
        GIF[: GIF.index(b",", 13)] + COMMENTS + GIF[GIF.index(b",", 13) :],
        encode(Image.new("L", (1, MAX_PARTS + 1)), "TIFF", tiffinfo={278: 1}),  # a strip per row
    ],
    ids=["chunks", "pixel chunks", "comments", "strips"],
)
def test_images_of_too_many_parts_are_not_decoded(data):
    assert find_problem(data) is ImageProblem.TOO_SLOW
    with pytest.raises(ValueError, match=f"has more than {MAX_PARTS:,}"):
        decode_rgb(data)


def test_images_of_too_many_rows_are_not_decoded():
    data = png(1, 70_000, 8, 0, b"\0\0" * 70_000)
    assert find_problem(data) is ImageProblem.TOO_LARGE
    with pytest.raises(ValueError, match=r"1×70000 pixels; at most 64,000,000 are decoded, and 65,535 a side"):
        decode_rgb(data)
    assert find_problem(png(1, 65_535, 8, 0, b"\0\0" * 65_535)) is None


@pytest.mark.parametrize("kind", ["BMP", "PNG", "WEBP", "TIFF", "AVIF", "GIF"])
def test_an_image_that_is_transparent_everywhere_is_opaque(kind):
    """Such as a screenshot from the clipboard, whose alpha was never set."""
    image = picture().convert("RGBA")
    image.putalpha(0)
    if kind == "GIF":
        image = picture().convert("P")
        options = {"transparency": 5}
        image.paste(5, (0, 0, *image.size))
    else:
        options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100}}.get(kind, {})
    if kind == "BMP":
        masks = [0xFF << shift for shift in (16, 8, 0, 24)]
        fields = struct.pack("<IiiHHIIiiIIIIII", 108, 36, 24, 1, 32, 3, 0, 0, 0, 0, 0, *masks)
        pixels = np.asarray(image)[::-1, :, [2, 1, 0, 3]].tobytes()
        data = b"BM" + struct.pack("<IHHI", 14 + 108 + len(pixels), 0, 0, 122) + fields.ljust(108, b"\0") + pixels
    else:
        data = encode(image, kind, **options)
    assert Image.open(io.BytesIO(data)).has_transparency_data
    wanted = np.asarray(image.convert("RGB")).astype(int)
    np.testing.assert_allclose(decoded(data), wanted, atol=6 if kind == "AVIF" else 0)
    assert np.ptp(wanted) > 0 or kind == "GIF"


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"compression": "tiff_lzw"}),
        ("RGB", {"compression": "tiff_adobe_deflate"}),
        ("RGB", {"compression": "packbits"}),
        ("P", {}),
        ("L", {}),
        ("RGBA", {}),
        ("CMYK", {}),
    ],
)
def test_tiffs_decode(mode, options):
    image = picture().convert(mode)
    np.testing.assert_array_equal(decoded(encode(image, "TIFF", **options)), np.asarray(image.convert("RGB")))


def test_16_bit_tiffs_keep_their_high_bytes_and_measurements_are_unsupported():
    values = np.random.default_rng(1).integers(0, 65536, (5, 7), np.uint16)
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(values), "TIFF"))[..., 0], values >> 8)
    for mode in ("F", "I"):
        assert find_problem(encode(picture().convert(mode), "TIFF")) is ImageProblem.UNSUPPORTED


def test_the_largest_allowed_image_is_small_enough_for_pillow():
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS  # above it, Pillow would warn in training

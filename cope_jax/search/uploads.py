"""Forms with pictures from untrusted users: limits on requests and files, and decoding in a process of its own."""

import codecs
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePath

import anyio
import numpy as np
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from cope_jax.search.moments import VIDEO_TYPES

MAX_FILE = 10_000_000  # bytes
MAX_FILES = 16
MAX_VIDEO = 50_000_000  # bytes
MAX_REQUEST = 60_000_000  # bytes
MAX_TEXT = 2_000  # characters
MAX_FIELDS = 40
MAX_FIELD = 64_000  # bytes
ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def limited_form(request: Request, *, json_object: bool = False) -> AsyncIterator[FormData]:
    """Parses a form; Starlette keeps files above 1 MB on disk. No more than MAX_REQUEST is stored.

    Args:
        request: Request with the form.
        json_object: Allow a JSON object of texts, numbers and a list of domains in its place, up to MAX_FIELD.

    Raises:
        HTTPException: 413 if the request is larger, 400 if it is not a valid form or has too many parts, 422 if a
            value of a JSON object is a list, except for search.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    try:
        charset = codecs.lookup(options.get(b"charset", b"utf-8").decode("ascii")).name
    except (LookupError, ValueError):
        charset = None
    if charset != "utf-8":
        raise HTTPException(400, "The form must be encoded in UTF-8.")
    is_json, size = json_object and kind == b"application/json", 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > (MAX_FIELD if is_json else MAX_REQUEST):  # uvicorn drops the rest
            limit = f"at most {MAX_FIELD} bytes" if is_json else f"at most {megabytes(MAX_REQUEST)} together"
            raise HTTPException(413, f"The {'query is' if is_json else 'pictures are'} too large: {limit}.")
        return message

    limited = Request(request.scope, receive)
    if is_json:
        yield _flatten(await limited.body())
        return
    async with limited.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD) as form:
        yield form


def _flatten(body: bytes) -> FormData:
    """Returns the values of a JSON object as a form has them; raises HTTPException if they are of another kind."""
    try:
        values = json.loads(body.decode())
        pairs = [(name, value) for name, own in values.items() for value in (own if isinstance(own, list) else [own])]
        "".join(f"{name}{value}" for name, value in pairs).encode()  # fails for half a surrogate pair
    except (ValueError, AttributeError, RecursionError) as error:
        raise HTTPException(400, "The query must be a JSON object in UTF-8.") from error
    pairs = [(name, int(value) if isinstance(value, float) and value.is_integer() else value) for name, value in pairs]
    if wrong := [name for name, value in pairs if isinstance(value, bool) or not isinstance(value, str | int)]:
        raise HTTPException(400, f"{wrong[0]} must be a text, a number or a list of texts.")
    if lists := [name for name, own in values.items() if isinstance(own, list) and (name != "search" or not own)]:
        raise HTTPException(422, f"{lists[0]} is a list: only search can be one, of at least one domain.")
    if len(pairs) > MAX_FIELDS:
        raise HTTPException(400, f"The query has {len(pairs)} values: at most {MAX_FIELDS}.")
    return FormData([(name, str(value)) for name, value in pairs])


def uploaded_pictures(form: FormData) -> list[UploadFile]:
    """Returns the uploaded pictures, or a video.

    Raises:
        HTTPException: 400 if a picture is not a file or another field is one, 413 if it is too large, 422 if there is
            a video and another file.
    """
    uploads = []
    for name, upload in form.multi_items():
        if isinstance(upload, UploadFile) != (name == "pictures"):
            raise HTTPException(400, "pictures must be files, and nothing else can be one.")
        if not isinstance(upload, UploadFile):
            continue
        size, kind, limit = upload.size or 0, *(("video", MAX_VIDEO) if is_video(upload) else ("picture", MAX_FILE))
        if size > limit:
            raise HTTPException(413, f"{upload.filename} has {megabytes(size)}: at most {megabytes(limit)} per {kind}.")
        if upload.filename:  # otherwise the field was left empty
            uploads.append(upload)
    if len(uploads) > 1 and any(map(is_video, uploads)):
        raise HTTPException(422, "A video is searched for alone: choose one file.")
    return uploads


def is_video(upload: UploadFile) -> bool:
    """Returns whether a file is to be read as a video, which follows from its name."""
    return PurePath(upload.filename or "").suffix.lower() in VIDEO_TYPES


async def decode_pictures(uploads: Sequence[UploadFile], side: int, rule: str) -> tuple[list[np.ndarray], list[str]]:
    """Returns pictures, or frames of a video, as the model reads them, u8[side, side, 3], and thumbnails as data URIs.

    `rule` is a key of RESIZES. The decoding process is killed if the caller is canceled.

    Raises:
        HTTPException: 415 if a picture has an unknown format or is damaged, 413 if it has too many pixels.
    """
    descriptors = [upload.file.fileno() for upload in uploads]
    form = "video" if any(map(is_video, uploads)) else "pictures"
    command = [sys.executable, "-W", "ignore", "-m", "cope_jax.search.upload_decoder", form, str(side), rule]
    paths = [str(ROOT), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    process = await anyio.run_process(
        [*command, *map(str, descriptors)], pass_fds=descriptors, check=False, stderr=None, env=environment
    )
    if process.returncode:
        raise HTTPException(415, f"The {form} cannot be decoded.")
    header, _, pixels = process.stdout.partition(b"\n")
    values = json.loads(header)
    if "problem" in values:
        status, number, message = values["problem"]
        raise HTTPException(status, f"{uploads[number].filename} {message}")
    return list(np.frombuffer(pixels, np.uint8).reshape(-1, side, side, 3)), values["thumbnails"]


def megabytes(size: int) -> str:
    """Formats a number of bytes."""
    return f"{size / 1e6:.1f} MB"

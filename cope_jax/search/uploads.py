"""Uploaded pictures from untrusted users: limits on requests, files, and pixels."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from cope_jax.data.images import MAX_PIXELS, open_image

MAX_FILE = 10_000_000  # bytes
MAX_FILES = 16
MAX_REQUEST = 60_000_000  # bytes
MAX_DRAINED = 1_000_000_000  # bytes read and dropped of a larger request, or the browser would not show the response
MAX_TEXT = 2_000  # characters
MAX_FIELDS = 10


@asynccontextmanager
async def limited_form(request: Request) -> AsyncIterator[FormData]:
    """Parses a form without ever storing more than MAX_REQUEST, whatever content length the request claims.

    Raises:
        HTTPException: 413 if it is larger, 400 if it is not a form or has too many parts.
    """
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_REQUEST:
            body += part
        elif size > MAX_DRAINED:
            break
        else:
            body.clear()
    if size > MAX_REQUEST:
        raise HTTPException(413, f"The pictures are too large: at most {megabytes(MAX_REQUEST)} together.")

    async def replay() -> Message:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    async with Request(request.scope, replay).form(max_files=MAX_FILES, max_fields=MAX_FIELDS) as form:
        yield form


async def read_pictures(form: FormData) -> list[tuple[str, bytes]]:
    """Returns name and content of the uploaded pictures.

    Raises:
        HTTPException: 400 if a picture is not a file, 413 if it is too large.
    """
    pictures = []
    for upload in form.getlist("pictures"):
        if not isinstance(upload, UploadFile):
            raise HTTPException(400, "pictures must be files.")
        if not upload.filename:  # the field was left empty
            continue
        size = upload.size or 0
        if size > MAX_FILE:
            raise HTTPException(
                413, f"{upload.filename} has {megabytes(size)}: at most {megabytes(MAX_FILE)} per picture."
            )
        pictures.append((upload.filename, await upload.read()))
    return pictures


def check_picture(name: str, data: bytes) -> bytes:
    """Returns an uploaded picture if it can be decoded.

    Raises:
        HTTPException: 415 if it has an unknown format or is damaged, 413 if it has too many pixels.
    """
    try:
        with open_image(data) as image:
            if image.width * image.height > MAX_PIXELS:
                raise HTTPException(
                    413,
                    f"{name} has {image.width} × {image.height} pixels: at most {MAX_PIXELS // 1_000_000} million.",
                )
            image.load()
    except ValueError as error:
        raise HTTPException(415, f"{name} cannot be read as a picture (JPEG, PNG, WebP, GIF, or BMP).") from error
    return data


def megabytes(size: int) -> str:
    """Formats a number of bytes."""
    return f"{size / 1e6:.1f} MB"

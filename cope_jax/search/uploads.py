"""Forms with pictures from people who may send anything: limits on the request, its files and their pixels."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from cope_jax.data.images import open_image
from cope_jax.data.thumbnails import MAX_PIXELS

MAX_FILE = 10_000_000  # bytes
MAX_FILES = 16
MAX_REQUEST = 60_000_000  # bytes, all together
MAX_DRAINED = 1_000_000_000  # of a larger request so much is read and dropped, or the browser would not see the answer
MAX_TEXT = 2_000  # characters
MAX_FIELDS = 10


@asynccontextmanager
async def limited_form(request: Request) -> AsyncIterator[FormData]:
    """The form of a request, for a block: never held beyond MAX_REQUEST, whatever the request says of its length.

    Raises:
        HTTPException: 413, it is larger; 400, it is no form, or one of too many parts.
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
        raise HTTPException(
            413, f"That is too much at once: at most {megabytes(MAX_REQUEST)} for all pictures together."
        )

    async def replay() -> Message:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    async with Request(request.scope, replay).form(max_files=MAX_FILES, max_fields=MAX_FIELDS) as form:
        yield form


async def read_pictures(form: FormData) -> list[tuple[str, bytes]]:
    """Name and bytes of the uploaded pictures; a field without a file is none.

    Raises:
        HTTPException: 400, not a file; 413, one is too large.
    """
    pictures = []
    for upload in form.getlist("pictures"):
        if not isinstance(upload, UploadFile):
            raise HTTPException(400, "pictures must be files.")
        if not upload.filename:
            continue
        if (upload.size or 0) > MAX_FILE:
            raise HTTPException(
                413, f"{upload.filename} has {megabytes(upload.size)}: at most {megabytes(MAX_FILE)} a picture."
            )
        pictures.append((upload.filename, await upload.read()))
    return pictures


def checked(name: str, data: bytes) -> bytes:
    """An uploaded picture that is known to decode.

    Raises:
        HTTPException: 415, it is no picture of a known format or is broken; 413, it has too many pixels.
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
        raise HTTPException(415, f"{name} cannot be read as a picture (JPEG, PNG, WebP, GIF or BMP).") from error
    return data


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.1f} MB"

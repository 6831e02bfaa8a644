"""An image server that misbehaves as real servers do: as chosen for each name, or at random.

It writes HTTP by hand, because no library allows such errors. It runs in a thread of the test (`Server`) or as a
process that prints its URL:

    python -m tests.data_prep.download.misbehaving_server [--photos=SIDE]
"""

import argparse
import asyncio
import collections
import email.utils
import functools
import json
import random
import re
import threading
import time
import zlib
from collections.abc import Iterable, Mapping

import brotli
import numpy as np
import simplejpeg

from data_prep.download.failures import Failure

# What the server does for a name → why its image is missing at the end; None if it arrives.
BEHAVIORS: dict[str, Failure | None] = {
    "fine": None,
    "wrong_type": None,  # an image with the content type text/html
    "no_length": None,  # the body ends with the connection
    "chunked": None,
    "error_twice": None,  # 500, 500, then fine
    "busy_once": None,  # 503 with Retry-After as a date, then fine
    "busy_seconds": None,  # 429 with Retry-After: 1, then fine
    "reset_once": None,
    "truncated_once": None,
    "stalls_once": None,
    "redirect": None,
    "redirect_quoted": None,  # to a URL that is valid only as it is sent
    "redirect_bytes": None,  # to a name in UTF-8 and with a blank, neither quoted
    "busy_nonsense": None,  # 503 with a date that does not exist, then fine
    "long_header": None,
    "brotli": None,
    "zstd": None,
    "not_found": Failure.GONE,
    "gone": Failure.GONE,
    "error": Failure.SERVER,
    "forbidden": Failure.CLIENT,
    "no_content": Failure.CLIENT,
    "silent": Failure.TIMEOUT,
    "drip": Failure.TIMEOUT,  # byte by byte, each one in time
    "stalls": Failure.TIMEOUT,
    "reset": Failure.CONNECTION,
    "garbage": Failure.PROTOCOL,
    "two_lengths": Failure.PROTOCOL,
    "length_and_chunks": Failure.PROTOCOL,
    "no_colon": Failure.PROTOCOL,
    "bad_chunk": Failure.PROTOCOL,
    "bad_brotli": Failure.PROTOCOL,
    "truncated": Failure.TRUNCATED,
    "chunk_cut": Failure.TRUNCATED,
    "redirect_loop": Failure.REDIRECT,
    "redirect_file": Failure.REDIRECT,
    "redirect_nowhere": Failure.REDIRECT,
    "redirect_empty_label": Failure.REDIRECT,
    "redirect_long_label": Failure.REDIRECT,
    "redirect_punycode": Failure.REDIRECT,
    "redirect_port": Failure.REDIRECT,
    "redirect_bracket": Failure.REDIRECT,
    "oversized": Failure.TOO_LARGE,
    "oversized_chunked": Failure.TOO_LARGE,
    "html": Failure.NOT_AN_IMAGE,
    "empty": Failure.NOT_AN_IMAGE,
    "heic": Failure.UNSUPPORTED,
    "half": Failure.CORRUPT,  # half an image of the right length
    "placeholder": Failure.PLACEHOLDER,
}
_TIMES = {
    "error_twice": 2,
    "busy_once": 1,
    "busy_seconds": 1,
    "busy_nonsense": 1,
    "reset_once": 1,
    "truncated_once": 1,
    "stalls_once": 1,
}
MAX_BYTES = 50_000  # limit of the client, which "oversized" bodies exceed
PLACEHOLDER_NAME = "the placeholder"
_LOCATIONS = {
    "redirect_file": "file:///etc/hostname",
    "redirect_empty_label": "http://cdn..example/x.jpg",
    "redirect_long_label": f"http://{64 * 'a'}.example/x.jpg",
    "redirect_punycode": "http://xn--/x.jpg",
    "redirect_port": "http://cdn.example:99999/x.jpg",
    "redirect_bracket": "http://[cdn.example/x.jpg",
}
_QUOTED = "%27%2c%2F%3F%7E%40?Signature=x%2Fy%3D"  # after the name


@functools.cache
def image(name: str, side: int = 24) -> bytes:
    """Returns the JPEG of a name."""
    pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (side, side + 8, 3), np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=80)


def draw_behaviors(names: Iterable[str], seed: int) -> dict[str, str]:
    """Returns name → behavior: each behavior at least once if there are enough names, mostly "fine"."""
    names, rng = list(names), random.Random(seed)
    # Retry-After stops all requests for a second, and each complaint halves the rate: once each is enough.
    weights = [300 if each == "fine" else not each.startswith("busy") for each in BEHAVIORS]
    drawn = [*BEHAVIORS, *rng.choices(list(BEHAVIORS), weights, k=len(names))][: len(names)]
    rng.shuffle(drawn)
    return dict(zip(names, drawn, strict=True))


class Server:
    """Context manager that runs the server in a thread.

    Attributes:
        requests: Name → requests so far; the target of a redirect counts separately.
        answers: Status → number of answers.
        headers: Headers of the latest request.
        locations: Name → URL to which it is redirected.
    """

    def __init__(
        self, behaviors: Mapping[str, str] | None = None, *, limit: int | None = None, default="not_found", photos=0
    ):
        """Configures the server.

        Args:
            behaviors: Name as encoded in URLs → one of `BEHAVIORS`.
            limit: Requests per second that are served; the others get 429 with Retry-After.
            default: Behavior for other names.
            photos: If not 0, all names share a few images of this side, so that a benchmark need not wait for them.
        """
        self.behaviors = dict(behaviors or {})
        self.limit = limit
        self.default = default
        self.photos = [image(str(number), photos) for number in range(64)] if photos else ()
        self.requests: collections.Counter[str] = collections.Counter()
        self.answers: collections.Counter[int] = collections.Counter()
        self.headers = ""
        self.locations: dict[str, str] = {}
        self._served: collections.Counter[int] = collections.Counter()  # per second
        self._first = self._latest = 0.0
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def serve(self) -> None:
        """Serves until stopped."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._connections: set[asyncio.Task] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/images/"
        print(self.url, flush=True)
        self._started.set()
        await self._stop.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.headers = head.decode()
                path = self.headers.split(" ", 2)[1]
                if not await self._answer(path[path.find("/images/") :].removeprefix("/images/"), writer):
                    break
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(asyncio.current_task())
            writer.close()

    async def _answer(self, name: str, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; returns whether the connection stays open."""
        if name == "times":  # of the first and the latest request, for benchmarks
            times, self._first = [self._first, self._latest], 0.0
            return self._send(writer, 200, json.dumps(times).encode())
        self._latest = time.monotonic()
        self._first = self._first or self._latest
        self.requests[name] += 1
        second = int(self._latest)
        self._served[second] += 1
        if self.limit is not None:
            await asyncio.sleep(0.025)  # latency: some more requests are sent before the first 429
        if self.limit is not None and self._served[second] > self.limit:
            return self._send(writer, 429, headers="Retry-After: 1\r\n")
        # The nonexistent name of the preflight is not "fine".
        default = "not_found" if self.default == "fine" and name.endswith("-is-no-image.jpg") else self.default
        behavior = self.behaviors.get(name, default)
        if self.requests[name] > _TIMES.get(behavior, self.requests[name]):
            behavior = "fine"
        if name in self.locations:
            return self._send(writer, 302, headers=f"Location: {self.locations[name]}\r\n")
        if self.photos:
            body = self.photos[zlib.crc32(name.encode()) % len(self.photos)]
        else:
            body = image(PLACEHOLDER_NAME if behavior == "placeholder" else name)
        match behavior:
            case "fine" | "placeholder":
                return self._send(writer, 200, body, "Content-Type: image/jpeg\r\n")
            case "wrong_type":
                return self._send(writer, 200, body, "Content-Type: text/html\r\n")
            case "not_found" | "gone" | "error" | "error_twice" | "forbidden" | "no_content":
                statuses = {"not_found": 404, "gone": 410, "forbidden": 403, "no_content": 204}
                return self._send(writer, statuses.get(behavior, 500))
            case "busy_once":
                date = email.utils.formatdate(time.time() + 1, usegmt=True)
                return self._send(writer, 503, headers=f"Retry-After: {date}\r\n")
            case "busy_nonsense":
                return self._send(writer, 503, headers="Retry-After: Wed, 21 Oct 2026 07:28:00 +9999999999999\r\n")
            case "busy_for_a_day":  # never drawn, because it ends a download
                return self._send(writer, 429, headers="Retry-After: 86400\r\n")
            case "busy_seconds":
                return self._send(writer, 429, headers="Retry-After: 1\r\n")
            case "html":
                return self._send(writer, 200, b"<!doctype html><p>welcome", "Content-Type: image/jpeg\r\n")
            case "empty":
                return self._send(writer, 200)
            case "half":
                return self._send(writer, 200, body[: len(body) // 2])
            case "oversized":
                return self._send(writer, 200, body + bytes(MAX_BYTES))
            case "redirect" | "redirect_quoted" | "redirect_bytes":
                sent, asked = {
                    "redirect": ("", ""),
                    "redirect_quoted": (_QUOTED, _QUOTED),
                    "redirect_bytes": (" é", "%20%C3%A9"),
                }[behavior]
                self.behaviors[f"moved-{name}{asked}"] = "moved"
                return self._send(writer, 302, headers=f"Location: moved-{name}{sent}\r\n")
            case "moved":
                return self._send(writer, 200, image(re.sub("(%27.*|%20%C3%A9)$", "", name)))
            case "redirect_nowhere":
                return self._send(writer, 302)
            case str() if behavior in _LOCATIONS or behavior == "redirect_loop":
                return self._send(writer, 302, headers=f"Location: {_LOCATIONS.get(behavior, name)}\r\n")
            case "long_header":
                return self._send(writer, 200, body, f"X-Policy: {40_000 * 'x'}\r\n")
            case "brotli":
                return self._send(writer, 200, brotli.compress(body), "Content-Encoding: br\r\n")
            case "zstd":
                size = len(body)  # a frame with one block, which is not compressed
                frame = (
                    b"\x28\xb5\x2f\xfd\xa0" + size.to_bytes(4, "little") + (size << 3 | 1).to_bytes(3, "little") + body
                )
                return self._send(writer, 200, frame, "Content-Encoding: zstd\r\n")
            case "bad_brotli":
                return self._send(writer, 200, body, "Content-Encoding: br\r\n")
            case "two_lengths":
                return self._send(writer, 200, body, "Content-Length: 7\r\n")
            case "no_colon":
                return self._send(writer, 200, body, "X-Policy\r\n")
            case "length_and_chunks":
                return self._send(writer, 200, body, "Transfer-Encoding: chunked\r\n")
            case "heic":
                return self._send(writer, 200, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + body)
            case "silent":
                await asyncio.sleep(60)
            case "garbage":
                writer.write(b"220 mail.example.org ESMTP\r\n")
            case "reset" | "reset_once":
                writer.transport.abort()
            case "bad_chunk":
                self._head(writer, 200, "Transfer-Encoding: chunked\r\n")
                writer.write(b"many\r\n" + body)
            case "chunked" | "chunk_cut":
                self._head(writer, 200, "Transfer-Encoding: chunked\r\n")
                writer.write(b"%x\r\n%b\r\n" % (100, body[:100]))
                if behavior == "chunked":
                    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 100, body[100:]))
                    return True
            case "no_length":
                self._head(writer, 200, "Connection: close\r\n")
                writer.write(body)
            case "oversized_chunked":
                self._head(writer, 200, "Transfer-Encoding: chunked\r\n")
                for _ in range(100):
                    writer.write(b"%x\r\n%b\r\n" % (len(body), body) * 50)
                    await writer.drain()
            case "truncated" | "truncated_once" | "stalls" | "stalls_once" | "drip":
                self._head(writer, 200, f"Content-Length: {len(body)}\r\n")
                for start in range(0, 1500 if behavior == "drip" else 1):
                    writer.write(body[start : start + 1])
                    await writer.drain()
                    await asyncio.sleep(0.04)
                await asyncio.sleep(0 if behavior.startswith("truncated") else 60)
            case _:
                raise ValueError(f"unknown behavior {behavior!r}; choose from {', '.join(BEHAVIORS)}")
        return False

    def _head(self, writer: asyncio.StreamWriter, status: int, headers: str) -> None:
        self.answers[status] += 1
        writer.write(f"HTTP/1.1 {status} Told So\r\n{headers}\r\n".encode())

    def _send(self, writer: asyncio.StreamWriter, status: int, body: bytes = b"", headers: str = "") -> bool:
        self._head(writer, status, f"{headers}Content-Length: {len(body)}\r\n" if status != 204 else headers)
        writer.write(body)
        return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=0)
    asyncio.run(Server(photos=parser.parse_args().photos, default="fine").serve())

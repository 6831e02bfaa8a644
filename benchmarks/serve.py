"""Loads the search server with many clients: `python -m benchmarks.serve --workdir=runs/demo --clients=200`.

Starts `search serve` on the loopback address. Each client sends one request after the other: queries by text, by item
and by picture, details of items, and the search page. A client that gets 429 or 503 waits as long as the answer asks,
or a second. The last line is JSON: requests by status, the median and the 99th percentile of the seconds until an
answer, also of those that were not turned away, and the memory of the server and its children in bytes: after a tenth
of the time, at the end, and the most. The exit code is 1 if a status is 500 or more except 503, or a connection fails.
"""

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import aiohttp
import numpy as np
import psutil
import simplejpeg
from absl import app, flags

from data_prep.common.process_pool import usable_cores

FLAGS = flags.FLAGS
BUSY = (429, 503)
FAILED = 0  # in place of a status: the connection failed
WORDS = ("红色连衣裙", "striped phone", "黑色鞋子", "bag", "新款 手机")


class Load:
    """Clients, and the statuses and durations of their requests."""

    def __init__(self, address: str, items: Sequence[tuple[str, str]], pid: int):
        """`items` are domains and ids to ask for, `pid` is the server's process."""
        self.address, self.items, self.server = address, items, psutil.Process(pid)
        self.statuses: Counter[int] = Counter()
        self.durations: list[tuple[int, float]] = []
        self.memory: list[int] = []
        rng = np.random.default_rng(0)
        self.pictures = [simplejpeg.encode_jpeg(rng.integers(0, 256, (240, 180, 3), np.uint8)) for _ in range(8)]

    def request(
        self, session: aiohttp.ClientSession, rng: random.Random
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Draws the next request of a client."""
        domain, item = rng.choice(self.items)
        kind = rng.choices(("text", "item", "picture", "details", "page"), (5, 3, 1, 3, 1))[0]
        if kind == "text":
            return session.post("/api/search", json={"text": f"{rng.choice(WORDS)} {rng.randrange(1000)}"})
        if kind == "item":
            return session.post("/api/search", json={"domain": domain, "item": item})
        if kind == "picture":
            form = aiohttp.FormData({"domain": domain})
            form.add_field("pictures", rng.choice(self.pictures), filename="photo.jpg", content_type="image/jpeg")
            return session.post("/api/search", data=form)
        return session.get(f"/api/items/{domain}/{item}" if kind == "details" else "/")

    async def run_client(self, number: int, end: float) -> None:
        """Sends requests until `end`."""
        rng = random.Random(number)
        async with aiohttp.ClientSession(self.address, timeout=aiohttp.ClientTimeout(60)) as session:
            while time.monotonic() < end:
                start, status, pause = time.monotonic(), FAILED, 1.0
                try:
                    async with self.request(session, rng) as response:
                        await response.read()
                        status, pause = response.status, float(response.headers.get("retry-after", 1))
                except (aiohttp.ClientError, TimeoutError) as error:
                    print(f"client {number}: {error!r}", file=sys.stderr)
                self.statuses[status] += 1
                self.durations.append((status, time.monotonic() - start))
                if status in (FAILED, *BUSY):
                    await asyncio.sleep(pause * rng.uniform(0.5, 1.5))

    async def watch_memory(self) -> None:
        """Notes the memory of the server and its children every half second."""
        while True:
            total = 0
            for process in (self.server, *self.server.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.memory.append(total)
            await asyncio.sleep(0.5)

    async def run(self) -> None:
        """Runs all clients."""
        watch = asyncio.create_task(self.watch_memory())
        end = time.monotonic() + FLAGS.seconds
        await asyncio.gather(*(self.run_client(number, end) for number in range(FLAGS.clients)))
        watch.cancel()

    def summary(self) -> dict[str, object]:
        """Returns the result."""
        answered = [seconds for status, seconds in self.durations if status not in (FAILED, *BUSY)]
        everything = [seconds for _, seconds in self.durations]
        times = {
            f"{name}_{label}_s": round(float(np.percentile(values, percent)), 3) if values else None
            for name, values in (("all", everything), ("answered", answered))
            for label, percent in (("median", 50), ("p99", 99))
        }
        memory = {"early": self.memory[len(self.memory) // 10], "end": self.memory[-1], "most": max(self.memory)}
        rates = {"requests": len(everything), "answered_per_s": round(len(answered) / FLAGS.seconds, 1)}
        return {"statuses": dict(sorted(self.statuses.items())), **rates, **times, "rss_bytes": memory}


async def some_items(address: str) -> list[tuple[str, str]]:
    """Returns domains and ids of items that the server knows."""
    async with (
        aiohttp.ClientSession(address) as session,
        session.post("/api/search", json={"text": WORDS[0], "top": 20}) as response,
    ):
        hits = (await response.json())["hits"]
    return [(hit["domain"], str(hit["item"])) for hit in hits]


def main(_: Sequence[str]) -> None:
    """Starts the server, runs the clients and prints the result."""
    command = [sys.executable, "-m", "cope_jax.search", "serve", f"--workdir={FLAGS.workdir}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            found = next(filter(None, (re.search(r"search at (http://\S+)", line) for line in server.stdout)))
            load = Load(found[1], asyncio.run(some_items(found[1])), server.pid)
            asyncio.run(load.run())
        finally:
            server.terminate()
    print(json.dumps({"clients": FLAGS.clients, "seconds": FLAGS.seconds, "cores": usable_cores(), **load.summary()}))
    if wrong := [status for status in load.statuses if status == FAILED or (status >= 500 and status not in BUSY)]:
        sys.exit(f"the server answered with {wrong}")


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("workdir", "runs/demo", "Work directory of the run to serve.")
    flags.DEFINE_integer("clients", 200, "Number of simultaneous clients.", lower_bound=1)
    flags.DEFINE_float("seconds", 60.0, "Seconds of load.", lower_bound=0.1)


if __name__ == "__main__":
    define_flags()
    app.run(main)

"""The search server under load and under attack: memory, deadlines, canceled requests, and shutdown."""

import asyncio
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx2
import pytest

from cope_jax.search import queries, server
from tests.conftest import ENVIRONMENT, ROOT
from tests.shop import PRODUCTS, blank_png, picture, serve_shop

FORM = {"domain": "page", "search": ["page", "video", "live"], "text": ""}
UPLOAD_HEAD = (
    b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b'Content-Length: 9000\r\n\r\n--b\r\nContent-Disposition: form-data; name="pictures"; filename="a.png"\r\n\r\nxx'
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A server with a deadline of one second, and its port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "DEADLINE", 1.0)
        with serve_shop(tmp_path_factory.mktemp("shop"), top=18) as (running, port):
            yield running, port


def converse(port: int, data: bytes, *, pause: float = 0.0, more: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """Sends data, then `more` in small parts as long as the server takes it; returns everything it sends."""
    with socket.create_connection((host, port)) as connection:
        connection.sendall(data)
        for byte in more:
            time.sleep(pause)
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
        connection.settimeout(10)
        parts = []
        try:
            while part := connection.recv(1 << 16):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


def assert_secure(response: bytes):
    head = response.partition(b"\r\n\r\n")[0].decode("latin-1").lower()
    for name, value in server.HEADERS.items():
        assert f"{name}: {value.lower()}" in head
    assert head.count("content-security-policy") == 1
    assert "access-control-allow-origin" not in head
    assert "unsafe" not in head


def get(path: str, **headers: str) -> bytes:
    """Returns a request after which the connection is closed."""
    lines = [
        f"GET {path} HTTP/1.1",
        *(f"{k}: {v}" for k, v in ({"Host": "localhost", "Connection": "close"} | headers).items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/"), 200),
        (get("/search.css"), 200),
        (get("/search"), 307),
        (get("/none"), 404),
        (get("/?item=x"), 404),
        (get("/", Host="evil.example"), 400),
        (get("/", Origin="http://evil.example"), 403),
        (get("/", Origin="http://[::1"), 400),
        (get("/", Origin="a\x01b"), 400),
        (b"nonsense\r\n\r\n", 400),
        (UPLOAD_HEAD.replace(b"boundary=b", b"boundary=b; charset=utf-9"), 400),
    ],
)
def test_every_response_has_the_security_headers(shop, request_bytes, status):
    response = converse(shop[1], request_bytes)
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert_secure(response)


def test_further_connections_are_rejected(shop, monkeypatch):
    running, port = shop
    monkeypatch.setattr(running.config, "limit_concurrency", 1)
    response = converse(port, get("/"))
    assert response.startswith(b"HTTP/1.1 503 ")
    assert_secure(response)


@pytest.mark.parametrize(
    ("data", "more"),
    [
        (b"", b""),
        (b"GET / HT", b""),
        (b"GET / HTTP/1.1\r\n", b"X: " + b"a" * 97),
        (get("/").replace(b"close", b"keep-alive"), b""),
        (UPLOAD_HEAD.replace(b"/search", b"/none"), b"x" * 100),
    ],
)
def test_idle_and_slow_connections_are_closed(shop, data, more):
    start = time.monotonic()
    converse(shop[1], data, pause=0.1, more=more)
    assert time.monotonic() - start < 8


def test_slow_upload_is_ended(shop):
    start = time.monotonic()
    response = converse(shop[1], UPLOAD_HEAD, pause=0.1, more=b"x" * 100)
    assert time.monotonic() - start < 8
    assert b" 503 " in response.partition(b"\r\n")[0]
    assert b"The request took longer than 1 seconds" in response


def test_connection_whose_response_is_not_read_is_closed(shop):
    running, port = shop
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        address = connection.getsockname()
        connection.sendall(get("/?item=101").replace(b"close", b"keep-alive") * 1000)

        def is_open() -> bool:
            return any(each.client == address for each in list(running.server_state.connections))

        deadline = time.monotonic() + 2
        while not is_open() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_open()
        deadline = time.monotonic() + 15
        while is_open() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not is_open()


@pytest.mark.slow
def test_slow_searches_end_at_the_deadline_and_do_not_block_the_server(shop):
    base = f"http://127.0.0.1:{shop[1]}"
    statuses = []

    def search():
        statuses.append(httpx2.post(f"{base}/search", data=FORM | {"text": "wait 3 kind 1"}, timeout=20).status_code)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert httpx2.get(base).status_code == 200
    for thread in threads:
        thread.join()
    assert statuses == [503] * 3
    end = time.monotonic() + 20  # the searches finish, although nobody waits for them
    while httpx2.post(f"{base}/search", data=FORM | {"text": "kind 1"}).status_code != 200:
        assert time.monotonic() < end


def test_request_of_a_client_that_disconnects_is_canceled(shop, monkeypatch):
    started, canceled = threading.Event(), threading.Event()

    async def decode(uploads, side, rule):
        started.set()
        try:
            await anyio.sleep(60)
        except anyio.get_cancelled_exc_class():
            canceled.set()
            raise

    monkeypatch.setattr(queries, "decode_pictures", decode)
    monkeypatch.setattr(server, "DEADLINE", 60.0)
    body = httpx2.Request("POST", "http://localhost/search", data=FORM, files={"pictures": ("a.png", picture(1))})
    head = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
    with socket.create_connection(("127.0.0.1", shop[1])) as connection:
        connection.sendall(f"POST /search HTTP/1.1\r\n{head}\r\n".encode() + body.read())
        assert started.wait(10)
        assert not canceled.is_set()
    assert canceled.wait(10)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize(("host", "clients"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
def test_ipv6(host, clients):
    with server.listen(host, 0) as listener:
        for client in clients:
            socket.create_connection((client, listener.getsockname()[1])).close()


@contextmanager
def shop_process(folder: Path, *, deadline: float):
    """Serves a shop from a process of its own; yields it and its address."""
    command = [sys.executable, "-m", "tests.shop", str(folder), str(deadline)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        port = int(process.stdout.readline())
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}")
                break
            except httpx2.TransportError:
                time.sleep(0.05)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_sigterm_lets_a_request_finish(tmp_path):
    with shop_process(tmp_path, deadline=30) as (process, address):
        responses = []

        def search():
            responses.append(httpx2.post(f"{address}/search", data=FORM | {"text": "wait 2 kind 3"}, timeout=20))

        thread = threading.Thread(target=search)
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):  # does not delay the end
            thread.start()
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            thread.join()
            (response,) = responses
            assert response.status_code == 200
            assert 'alt="page 103' in response.text
            assert process.wait(5) == -signal.SIGTERM


def resident_bytes(process: int) -> int:
    """Returns the resident memory of a process and its children."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name_and_rest = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if process in (int(status.parent.name), int(name_and_rest[1])):
            total += int(name_and_rest[21]) * 4096
    return total


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_memory_is_bounded_under_parallel_uploads_of_the_worst_pictures(tmp_path):
    files = [
        ("thin.png", blank_png(1, 64_000_000)),
        ("square.png", blank_png(8000, 8000, color_type=6)),
        ("tall.png", blank_png(976, 65_535, color_type=6)),
        ("large.bin", bytes(9_900_000)),
    ]
    peak, done = 0, threading.Event()
    with shop_process(tmp_path, deadline=25) as (process, address):
        httpx2.post(f"{address}/search", data=FORM, files={"pictures": ("1.png", picture(1))}, timeout=60)
        idle = resident_bytes(process.pid)

        def watch():
            nonlocal peak
            while not done.wait(0.02):
                peak = max(peak, resident_bytes(process.pid))

        async def upload(client: httpx2.AsyncClient, number: int) -> int:
            parts = [("pictures", files[number % 4])] * (6 if number % 4 == 3 else 1)
            return (await client.post(f"{address}/search", data=FORM, files=parts)).status_code

        async def upload_all() -> list[int]:
            async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=None)) as client:
                return await asyncio.gather(*(upload(client, number) for number in range(32)))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        statuses = asyncio.run(upload_all())
        done.set()
        watcher.join()
        assert httpx2.get(address).status_code == 200
        assert set(statuses) <= {200, 413, 415, 503}
        assert 200 in statuses
        assert peak - idle < 1.5e9
        assert resident_bytes(process.pid) - idle < 300e6


@pytest.mark.slow
def test_many_clients_get_their_own_answers(tmp_path):
    """64 clients for 20 seconds."""
    pictures = [picture(product) for product in range(PRODUCTS)]
    counts: dict[int, int] = {}

    async def search(client: httpx2.AsyncClient, address: str, number: int, turn: int) -> None:
        product = (number + turn) % PRODUCTS
        own = f"own-{number}-{turn}-"
        if number % 8 == 0:
            files = {"pictures": ("a.png", pictures[product])}
            response = await client.post(f"{address}/search", data=FORM, files=files)
        elif number % 2:
            response = await client.post(f"{address}/search", data=FORM | {"text": f"kind {product} {own}"})
            assert set(re.findall(r"own-\d+-\d+-", response.text)) <= {own}
        else:
            response = await client.get(f"{address}/?item=10{product}&domain=video&search=page")
        counts[response.status_code] = counts.get(response.status_code, 0) + 1
        assert response.status_code in (200, 503)
        if response.status_code == 200:
            hits = response.text.partition('<ol class="hits">')[2]
            assert re.findall(r'alt="\w+ (\d+)', hits)[0] == f"10{product}"

    async def client_loop(address: str, number: int, end: float) -> None:
        async with httpx2.AsyncClient(timeout=60) as client:
            turn = 0
            while time.monotonic() < end:
                await search(client, address, number, turn)
                turn += 1

    async def all_clients(address: str) -> None:
        end = time.monotonic() + 20
        await asyncio.gather(*(client_loop(address, number, end) for number in range(64)))

    with shop_process(tmp_path, deadline=30) as (process, address):
        asyncio.run(all_clients(address))
        assert process.poll() is None
        assert httpx2.get(address).status_code == 200
    assert counts[200] >= 64

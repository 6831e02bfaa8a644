"""A stand-in for the Hugging Face hub: answers what `huggingface_hub` asks to create, write, and read a repository."""

import hashlib
import json
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_" + "a" * 34


class StandInHub(ThreadingHTTPServer):
    """Serves `repositories`, {"owner/name": {path: content}}, which requests with TOKEN may change."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(b'{"error": "Invalid username or password."}', 401)
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":  # of README.md
            return self._send_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            fields = json.loads(body)
            name = f"{fields['organization']}/{fields['name']}"
            self.server.repositories.setdefault(name, {})
            return self._send_json({"url": f"{self.server.endpoint}/{name}"})
        name, action = self._repository(path)
        if action.startswith("preupload/"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self._send_json({"files": files})
        entries = [json.loads(line) for line in body.splitlines()]
        files = {entry["value"]["path"]: entry["value"]["content"] for entry in entries if entry["key"] == "file"}
        self.server.repositories[name] |= {path: b64decode(content) for path, content in files.items()}
        return self._send_json({"commitUrl": f"{self.server.endpoint}/{name}/commit/0", "commitOid": "0" * 40})

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            return self._send_file(name, rest.partition("/")[2])
        name, action = self._repository(path)
        if (files := self.server.repositories.get(name)) is None:
            return self._send(b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
        if action.startswith("tree/"):
            return self._send_json(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
                    for path, content in files.items()
                ]
            )
        return self._send_json({"id": name, "sha": self._commit(name)})

    do_HEAD = do_GET

    def _repository(self, path: str) -> tuple[str, str]:
        """The repository and the rest of a path of the API."""
        owner, name, *rest = path.removeprefix("/api/models/").split("/")
        return f"{owner}/{name}", "/".join(rest)

    def _commit(self, name: str) -> str:
        files = self.server.repositories[name]
        return _digest(b"".join(path.encode() + content for path, content in files.items()))

    def _send_file(self, name: str, path: str) -> None:
        content = self.server.repositories[name][path]
        self._send(content, headers={"ETag": f'"{_digest(content)}"', "X-Repo-Commit": self._commit(name)})

    def _send_json(self, value: object) -> None:
        self._send(json.dumps(value).encode())

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Logs nothing."""


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()

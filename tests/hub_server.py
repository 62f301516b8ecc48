"""A local server that speaks what huggingface_hub's client asks of the Hub."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from local_server import Handler, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


@dataclass
class Hub:
    """What the server has, what it has been asked for, and how it misbehaves.

    Attributes:
        files: By name, of the one repository.
        private: Whether only the holder of the token may see it.
        cut: Send no more than this many bytes of a file at once, then hang up.
        damaged: Names of files that are sent with another byte in the middle.
        requests: Method, path and Range of each.
    """

    name: str
    files: dict[str, bytes]
    private: bool = False
    cut: int | None = None
    damaged: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def entries(self) -> list[dict[str, Any]]:
        """The tree, as the client lists it; weights lie in the large-file storage."""
        found: list[dict[str, Any]] = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": self.etag(name)[:40]}
            if self.is_large(name):
                entry["lfs"] = {"oid": self.etag(name), "size": len(content), "pointerSize": 134}
            found.append(entry)
        return found

    def is_large(self, name: str) -> bool:
        """Whether a file has a SHA-256 for its etag."""
        return name.endswith((".safetensors", ".bin"))

    def etag(self, name: str) -> str:
        """By which the client's cache names the file."""
        return getattr(hashlib, "sha256" if self.is_large(name) else "sha1")(self.files[name]).hexdigest()


class _Handler(Handler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range", "")))
        if self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "RepoNotFound")
        info = re.fullmatch(r"/api/models/([^?]+?)(?:/(revision|tree)/([^/?]+))?(?:\?.*)?", self.path)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/([^?]+)", self.path)
        name = (info or file or [None, ""])[1]
        if name != self.hub.name:
            return self.refuse(404, "RepoNotFound")
        if info:
            if info[3] not in (None, "main", "v1", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            return self.send_json(self.hub.entries() if info[2] == "tree" else self.info())
        assert file
        if file[3] not in self.hub.files:
            return self.refuse(404, "EntryNotFound")
        return self.send_file(file[3])

    def info(self) -> dict[str, Any]:
        name, siblings = self.hub.name, [{"rfilename": name} for name in self.hub.files]
        return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": self.hub.private}

    def refuse(self, status: int, code: str) -> None:
        self.send_json({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def send_json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_file(self, name: str) -> None:
        content = self.hub.files[name]
        if name in self.hub.damaged:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, "0"])[1])
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{self.hub.etag(name)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            sent = body if self.hub.cut is None or not self.hub.is_large(name) else body[: self.hub.cut]
            self.wfile.write(sent)
            self.close_connection = len(sent) < len(body)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answer for as long as the context lasts."""
    with serving(_Handler, hub=hub) as hub.url:
        yield hub

"""A hub that speaks as much of the hub's protocol as an upload needs, and keeps what it was given."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml  # of huggingface_hub
from local_server import Handler, serving


@dataclass
class HubServer:
    """What was uploaded, by repository and path; those who show no token are refused."""

    token: str
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256, before they are committed
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""


class _Handler(Handler):
    hub: HubServer

    def respond(self) -> None:
        hub, body, path = self.hub, self.body(), self.path.partition("?")[0]
        hub.requests.append(f"{self.command} {self.path}")
        if path.startswith("/upload/"):  # an address that was handed out needs no token
            hub.large[path.removeprefix("/upload/")] = body
            return self.answer({})
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.answer({"error": "Invalid username or password."}, 401)
        answers = {
            "/api/repos/create": self.create,
            "/api/validate-yaml": self.validate,
            "/preupload/main": self.choose_modes,
            "/info/lfs/objects/batch": self.hand_out_addresses,
            "/commit/main": self.commit,
        }
        for end, answer in answers.items():
            if path.endswith(end):
                return answer(path, body)
        return self.answer({"error": f"{self.command} {self.path} is not served"}, 404)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def create(self, path: str, body: bytes) -> None:
        request = json.loads(body)
        name = f"{request['organization']}/{request['name']}"
        if name in self.hub.files:
            return self.answer({"error": "You already created this model repo", "url": name}, 409)
        self.hub.files[name] = {}
        return self.answer({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def validate(self, path: str, body: bytes) -> None:
        head = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        wrong = [] if isinstance(head, dict) else [{"message": "expected a head"}]
        self.answer({"errors": wrong, "warnings": []})

    def choose_modes(self, path: str, body: bytes) -> None:
        modes = []
        for name in (file["path"] for file in json.loads(body)["files"]):
            mode = "lfs" if name.endswith((".safetensors", ".onnx")) else "regular"
            modes.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None})
        self.answer({"files": modes})

    def hand_out_addresses(self, path: str, body: bytes) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/upload/{one['oid']}", "header": {}}}}
            for one in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, path: str, body: bytes) -> None:
        name = path.removeprefix("/api/models/").removesuffix("/commit/main")
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.files[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.files[name][value["path"]] = self.hub.large[value["oid"]]
        url = f"{self.hub.endpoint}/{name}/commit/1"
        self.answer({"success": True, "commitOid": "1" * 40, "commitUrl": url})


@contextmanager
def running_hub(token: str) -> Iterator[HubServer]:
    """Serve on a free port."""
    hub = HubServer(token)
    with serving(_Handler, hub=hub) as hub.endpoint:
        yield hub

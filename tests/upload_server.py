"""A hub that speaks as much of the hub's protocol as an upload needs, and keeps what it was given."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml  # of huggingface_hub


@dataclass
class HubServer:
    """What was uploaded, by repository and path; those who show no token are refused."""

    token: str
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256, before they are committed
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""


@contextmanager
def running_hub(token: str) -> Iterator[HubServer]:
    """Serve on a free port."""
    hub = HubServer(token)

    class Handler(BaseHTTPRequestHandler):
        def answer(self, content: Any, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def handle_request(self) -> None:
            body = self.body()
            hub.requests.append(f"{self.command} {self.path}")
            if self.path.startswith("/upload/"):  # an address that was handed out needs no token
                hub.large[self.path.removeprefix("/upload/")] = body
                return self.answer({})
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer({"error": "Invalid username or password."}, 401)
            path = self.path.partition("?")[0]
            if path == "/api/repos/create":
                request = json.loads(body)
                name = f"{request['organization']}/{request['name']}"
                if name in hub.files:
                    return self.answer({"error": "You already created this model repo", "url": name}, 409)
                hub.files[name] = {}
                return self.answer({"url": f"{hub.endpoint}/{name}", "name": name})
            if path == "/api/validate-yaml":
                head = yaml.safe_load(json.loads(body)["content"].split("---")[1])
                wrong = [] if isinstance(head, dict) else [{"message": "expected a head"}]
                return self.answer({"errors": wrong, "warnings": []})
            if path.endswith("/preupload/main"):
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".onnx")) else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in json.loads(body)["files"]
                ]
                return self.answer({"files": modes})
            if path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.endpoint}/upload/{one['oid']}", "header": {}}}}
                    for one in json.loads(body)["objects"]
                ]
                return self.answer({"transfer": "basic", "objects": objects})
            if path.endswith("/commit/main"):
                name = path.removeprefix("/api/models/").removesuffix("/commit/main")
                for line in body.splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        hub.files[name][value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        hub.files[name][value["path"]] = hub.large[value["oid"]]
                return self.answer(
                    {"success": True, "commitOid": "1" * 40, "commitUrl": f"{hub.endpoint}/{name}/commit/1"}
                )
            return self.answer({"error": f"{self.command} {self.path} is not served"}, 404)

        do_GET = do_POST = do_PUT = handle_request  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

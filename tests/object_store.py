"""An object store that speaks S3 and HTTP, moto's, between which and its clients requests can be made to fail."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

Wsgi = Callable[..., Any]
BUCKET = "speech"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",  # botocore's own, which would hide ours
}


@dataclass
class ObjectStore:
    """A server and what it was asked for.

    Attributes:
        faults: What happens to the next GET requests instead of an answer, one each: an HTTP status, "cut" to send half
            of the body and hang up, or "whole" to ignore the range.
        requests: Method, path and Range of each request.
    """

    url: str = ""
    faults: list[int | str] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def gets(self, suffix: str) -> list[str]:
        """The ranges that were asked for of objects with a suffix."""
        return [found for method, path, found in self.requests if method == "GET" and path.endswith(suffix)]

    def answer(self, app: Wsgi, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path, environ.get("HTTP_RANGE", "")))
        fault = self.faults.pop(0) if self.faults and method == "GET" else None
        if isinstance(fault, int):
            start_response(f"{fault} Injected", [("Content-Length", "0")])
            return [b""]
        if fault == "whole":
            environ.pop("HTTP_RANGE", None)
        answer = app(environ, start_response)
        if fault == "cut":
            content = b"".join(answer)
            return [content[: len(content) // 2]]  # fewer than Content-Length
        return answer


@contextmanager
def running_store() -> Iterator[ObjectStore]:
    """Serve on a free port; there is one bucket, which anyone may read over HTTP."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    store = ObjectStore()
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, lambda *arguments: store.answer(app, *arguments), threaded=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()

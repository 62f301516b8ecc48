"""HTTP servers on this machine, for tests of what is downloaded and uploaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Answers requests of all kinds with ``respond``, and logs none."""

    def respond(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.respond()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(handler: type[Handler], **attributes: Any) -> Iterator[str]:
    """Serve on a free port with handlers that have these attributes; yield the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), attributes)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()

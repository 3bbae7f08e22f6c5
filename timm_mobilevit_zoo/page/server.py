"""The page served on this machine."""

import math
import os
import re
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from timm_mobilevit_zoo_cli.checks import check_port, free_port, need_page

__all__ = ["POLICY", "serve"]

# What the page may load: its own files, compiled WASM, and pictures that the reader gives it.
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'"
)
# The first two let a page have threads; a worker has no policy but that of its own answer.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


SECONDS = 10.0  # in which a request has to arrive, and each piece of its answer to be taken
CONNECTIONS = 64  # at once, at most: a browser opens 6
# By any other name this machine is a stranger's page's idea: names that first lead there, and then here.
_HERE = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE | re.ASCII)


def serve(folder: str | Path, *, port: int = 0) -> None:
    """Serve a page on this machine alone, with the headers that threads need, until it is interrupted.

    Only requests that name this machine `localhost` or `127.0.0.1` are answered, so that no other site reads the models
    and their labels through a browser here.

    Args:
        folder: What `page` wrote.
        port: Port on 127.0.0.1; 0 takes a free one.

    Raises:
        ValueError: For a folder that holds no page, and a port that is none.
        OSError: For a port that is taken, or that only others may use; names it.
    """
    need_page(str(folder))
    check_port(port)
    free_port(port)
    handler = partial(_Handler, directory=os.path.realpath(folder))
    with suppress(KeyboardInterrupt), _Server(("127.0.0.1", port), handler) as server:
        try:
            sys.stdout.write(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)\n")
            sys.stdout.flush()
            server.serve_forever()
        except KeyboardInterrupt:
            sys.stdout.write("\n")


class _Server(ThreadingHTTPServer):
    """Answers each connection in a thread, and ends those that hold one without a whole request."""

    daemon_threads = False  # `server_close` waits for them
    allow_reuse_port = False  # with it, a port that is taken may seem free

    def __init__(self, *args: Any) -> None:
        self.open: dict[Any, float] = {}  # each connection, and until when its request has to arrive
        super().__init__(*args)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        has_room = len(self.open) < CONNECTIONS
        if has_room:
            self.open[request] = time.monotonic() + SECONDS
        return has_room

    def arrived(self, request: Any) -> None:
        """Note that a request is whole."""
        self.open[request] = math.inf

    def shutdown_request(self, request: Any) -> None:
        self.open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:  # after each connection, and twice a second
        self._end(time.monotonic())

    def server_close(self) -> None:
        self._end(math.inf)
        super().server_close()

    def _end(self, now: float) -> None:
        """Tell the threads of connections whose time is over that nothing more will come."""
        for request, until in list(self.open.items()):
            if until <= now:
                with suppress(OSError):  # it has ended meanwhile
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # those are readers that have gone
            super().handle_error(request, client_address)


class _Handler(SimpleHTTPRequestHandler):
    timeout = SECONDS
    extensions_map = {  # noqa: RUF012 - the parent's, which asks the system for what it lacks
        "": "application/octet-stream",
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".mjs": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        self.server.arrived(self.request)  # type: ignore[attr-defined]
        hosts = self.headers.get_all("Host", []) if self.request_version != "HTTP/0.9" else []
        if len(hosts) != 1 or not _HERE.fullmatch(hosts[0].strip()):
            self.send_error(403, "This page is for localhost alone")
            return False
        return True

    def translate_path(self, path: str) -> str:
        found = os.path.realpath(super().translate_path(path))
        is_ours = found == self.directory or found.startswith(os.path.join(self.directory, ""))
        return found + "/" * path.partition("?")[0].endswith("/") if is_ours else ""

    def send_head(self) -> Any:
        try:
            return super().send_head()
        except ValueError:  # no file has such a name
            return self.send_error(404)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # the reader has gone
            super().copyfile(source, outputfile)

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass

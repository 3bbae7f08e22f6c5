"""The page served on this machine."""

import sys
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from timm_mobilevit_zoo_cli.checks import check_port, need_page

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


def serve(folder: str, *, port: int = 0) -> None:
    """Serve a page on this machine alone, with the headers that threads need, until it is interrupted.

    Args:
        folder: What `page` wrote.
        port: Port on 127.0.0.1; 0 takes a free one.

    Raises:
        ValueError: For a folder that holds no page, and a port that is none.
        OSError: For a port that is taken.
    """
    need_page(folder)
    check_port(port)
    with ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=folder)) as server:
        sys.stdout.write(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)\n")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.stdout.write("\n")


class _Handler(SimpleHTTPRequestHandler):
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

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # the reader has gone
            super().copyfile(source, outputfile)

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass

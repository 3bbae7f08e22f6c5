"""The page's server: whom it answers, what it makes of odd requests, and that nothing of it stays."""

import os
import socket
import struct
import sys
import threading
from functools import partial

import pytest

from timm_mobilevit_zoo.page import server as page_server
from timm_mobilevit_zoo_cli.checks import check


@pytest.fixture
def served(tmp_path, capsys):
    """A page with something private, and something beside it; a server of it, whose thread ends with the test."""
    folder = tmp_path / "page"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "index.json").write_text('{"private": 1}')
    (folder / "index.html").write_text("the page")
    (tmp_path / "outside.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    handler = partial(page_server._Handler, directory=os.path.realpath(folder))
    with page_server._Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    assert not server.open
    assert "Traceback" not in capsys.readouterr().err


def connect(server):
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=30)


def read(connection):
    """Return what comes until the other side has ended the connection."""
    parts = b""
    try:
        while part := connection.recv(65536):
            parts += part
    except ConnectionResetError:
        pass
    return parts


def ask(server, request):
    with connect(server) as connection:
        connection.sendall(request)
        return read(connection)


def get(server, path, host="localhost", method="GET"):
    return ask(server, f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:80"])
def test_this_machine_is_answered(served, host):
    assert b'{"private": 1}' in get(served, "/models/index.json?x", host)


@pytest.mark.parametrize(
    "headers",
    [
        "Host: evil.example\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: evil.example:80\r\nHost: localhost\r\n",
        "Host: localhost:80@evil.example\r\n",
        "Host: 127.0.0.1.evil.example\r\n",
        "Host: \r\n",
        "",
    ],
)
def test_other_names_of_this_machine_are_not_answered(served, headers):
    answer = ask(served, f"GET /models/index.json HTTP/1.1\r\n{headers}\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 403 ")
    assert b"private" not in answer


def test_a_request_without_headers_is_not_answered(served):
    assert b"private" not in ask(served, b"GET /models/index.json\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/%00", 404),
        ("/index.html%00.json", 404),
        ("/%ed%a0%80", 404),
        ("/%ff", 404),
        ("/" + "x" * 5000, 404),
        ("/models/index.json/", 404),
        ("/../outside.txt", 404),
        ("/%2e%2e/outside.txt", 404),
        ("/..%2foutside.txt", 404),
        ("/models/..%2f..%2foutside.txt", 404),
        ("/%252e%252e/outside.txt", 404),
        ("/..%5coutside.txt", 404),
        ("/link.txt", 404),
        ("/models", 301),
        ("/models/", 404),
        ("/", 200),
    ],
)
def test_paths(served, path, status):
    answer = get(served, path)
    assert answer.startswith(f"HTTP/1.0 {status} ".encode())
    assert b"\n\r\noutside" not in answer


def test_methods(served):
    assert get(served, "/", method="HEAD").endswith(b"\r\n\r\n")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(served, "/", method=method).startswith(b"HTTP/1.0 501 ")


def test_requests_that_are_too_long(served):
    assert b" 414 " in ask(served, b"GET /" + b"x" * 70000)
    assert b" 431 " in ask(served, b"GET / HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(200)) + b"\r\n")


def test_readers_that_go_leave_no_traceback(served):
    for sent in (b"", b"GET", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with connect(served) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(sent)
    assert get(served, "/").endswith(b"the page")


def test_a_request_that_is_never_whole_is_ended(monkeypatch, served):
    monkeypatch.setattr(page_server, "SECONDS", 0.05)
    for sent in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: local"):
        with connect(served) as connection:
            connection.sendall(sent)
            assert b"the page" not in read(connection)


def test_only_so_many_connections_are_held(monkeypatch, served):
    monkeypatch.setattr(page_server, "CONNECTIONS", 3)
    held = [connect(served) for _ in range(3)]
    assert read(connect(served)) == b""
    for connection in held:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read(connection).endswith(b"the page")
        connection.close()


def test_closing_ends_connections(served):
    with connect(served) as connection:
        connection.sendall(b"GET / HT")
        while not served.open:  # until it was taken
            pass
        served.shutdown()
        served.server_close()
        assert not served.open
        assert b"the page" not in read(connection)


def test_a_taken_port_is_told(served):
    port, folder = served.server_port, served.RequestHandlerClass.keywords["directory"]
    with pytest.raises(OSError, match=f"^port={port} cannot be used: .*; choose another, or 0 for a free one"):
        page_server.serve(folder, port=port)
    with pytest.raises(OSError, match=f"^port={port} cannot be used"):  # and before a page is written for it
        check("page", {"output": "site", "models": ["m"], "images": "", "serve": True, "port": port})


def test_an_interrupt_closes_all(monkeypatch, served, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(page_server._Server, "serve_forever", interrupted)
    monkeypatch.setattr(page_server._Server, "handle_error", lambda *_: sys.exit(1))
    page_server.serve(served.RequestHandlerClass.keywords["directory"])
    assert capsys.readouterr().out.endswith("(Ctrl-C ends it)\n\n")

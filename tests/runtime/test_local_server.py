"""The server of the pages: who is let in, what is refused, and that nothing brings it down."""

import http.client
import logging
import socket
import threading
import time

import pytest

from posemodel.runtime import local_server
from posemodel.runtime.errors import UserError
from posemodel.runtime.local_server import TOKEN_MARK, LocalServer, Refused
from tests.serving import serving


class Echo:
    """A site that answers with the question."""

    large = {"/large": 200_000}

    def __init__(self):
        self.entered, self.leave = threading.Event(), threading.Event()

    def get(self, path):
        if path != "/":
            raise Refused(404, "nothing here")
        return "text/html", f'<meta name="token" content="{TOKEN_MARK}">'.encode()

    def post(self, path, values):
        if path == "/fail":
            raise RuntimeError("secret of the inside")
        if path == "/mistake":
            raise UserError("first line\nsecond line")
        if path == "/large" and values.get("wait"):
            self.entered.set()
            self.leave.wait(10)
        return {"path": path, "values": values}


@pytest.fixture
def site():
    return Echo()


@pytest.fixture
def client(site):
    with serving(site) as found:
        yield found


def test_page_carries_the_token_of_this_start(client):
    _, page, _ = client.get("/")
    assert client.server.token in page and len(client.server.token) >= 24
    assert client.ask("/echo", {"a": [1]}) == (200, {"path": "/echo", "values": {"a": [1]}})


@pytest.mark.parametrize("headers, status", [
    ({"Host": "evil.example"}, 403), ({"Host": "127.0.0.1"}, 403), ({"Host": "127.0.0.1:1"}, 403),
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
    ({"Origin": "https://127.0.0.1"}, 403), ({"Origin": None}, 403), ({"X_Token": None}, 403),
    ({"X_Token": "x" * 32}, 403), ({"X_Token": "\xe9"}, 403), ({"Content_Type": "text/plain"}, 415),
    ({"Content_Type": "application/x-www-form-urlencoded"}, 415), ({"Content_Type": None}, 415)])
def test_only_its_own_page_is_answered(client, headers, status):
    code, answer = client.ask("/echo", {}, **headers)
    assert code == status and set(answer) == {"error"}


def test_token_of_another_start_is_refused(client):
    with serving(Echo()) as other:
        assert client.ask("/echo", {}, X_Token=other.token)[0] == 403


def test_pages_are_not_given_under_a_foreign_name(client):
    assert client.get("/", Host="evil.example")[0] == 403
    assert client.get("/", Origin="http://evil.example")[0] == 403
    assert client.get("/", Host=f"localhost:{client.port}")[0] == 200
    assert client.get("/nothing")[0] == 404


@pytest.mark.parametrize("path, headers", [("/", {}), ("/nothing", {}), ("/", {"Host": "x"})])
def test_every_answer_has_the_strict_headers(client, path, headers):
    _, _, found = client.get(path, **headers)
    policy = found["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert found["X-Content-Type-Options"] == "nosniff" and found["Cache-Control"] == "no-store"


def test_faults_say_nothing_of_the_inside(client, caplog):
    with caplog.at_level(logging.ERROR, logger="posemodel.runtime.local_server"):
        status, answer = client.ask("/fail", {})
    assert status == 500 and "secret" not in str(answer) and "Traceback" not in str(answer)
    assert "secret of the inside" in caplog.text  # but the terminal does
    assert client.ask("/mistake", {}) == (400, {"error": "first line second line"})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a": NaN}',
                                  b'{"a": Infinity}', b"[" * 30_000, b'{"a":' * 9_000])
def test_a_question_is_a_json_object(client, body):
    assert client.ask("/echo", body)[0] == 400
    assert client.ask("/echo", {})[0] == 200


def test_sizes_are_limited_by_question(client):
    big = {"a": "x" * 70_000}
    assert client.ask("/echo", big)[0] == 413
    assert client.ask("/large", big)[0] == 200
    assert client.ask("/large", {"a": "x" * 200_000})[0] == 413
    # Whoever sends far too much is told so, and is not read to the end.
    host = f"Host: 127.0.0.1:{client.port}\r\nContent-Length: 99999999999\r\n\r\n"
    assert client.raw(b"POST /large HTTP/1.1\r\n" + host.encode()) == 403


def test_one_large_question_at_a_time(client, site):
    answers = []
    first = threading.Thread(target=lambda: answers.append(client.ask("/large", {"wait": True})))
    first.start()
    assert site.entered.wait(10)
    assert client.ask("/large", {})[0] == 429
    assert client.ask("/echo", {})[0] == 200
    site.leave.set()
    first.join()
    assert answers[0][0] == 200
    assert client.ask("/large", {})[0] == 200


def test_a_connection_is_used_again(client):
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    try:
        for _ in range(3):
            connection.request("GET", "/")
            assert connection.getresponse().read()
        used = connection.sock
        connection.request("GET", "/")
        connection.getresponse().read()
        assert connection.sock is used
    finally:
        connection.close()


def test_silent_connections_are_closed_and_their_number_is_limited(site, monkeypatch):
    monkeypatch.setattr(local_server._Handler, "timeout", 0.5)
    monkeypatch.setattr(local_server, "_CONNECTIONS", 3)
    with serving(site) as client:
        time.sleep(0.05)
        silent = [socket.create_connection(("127.0.0.1", client.port), timeout=10)
                  for _ in range(3)]
        with pytest.raises((ConnectionError, http.client.BadStatusLine)):
            client.get("/")
        for connection in silent:
            assert connection.recv(1) == b""
            connection.close()
        time.sleep(0.05)
        assert client.get("/")[0] == 200


@pytest.mark.parametrize("port", [-1, 70_000])
def test_impossible_ports_get_one_line(site, port):
    with pytest.raises(UserError, match=str(port)):
        LocalServer(site, port=port)


def test_port_in_use_gets_one_line(client):
    with pytest.raises(UserError, match=f"port {client.port}"):
        LocalServer(Echo(), port=client.port)

"""A `LocalServer` in a thread, and a client that can misbehave."""

import contextlib
import http.client
import json
import re
import socket
import threading
from contextlib import contextmanager

from posemodel.runtime.local_server import LocalServer


class Client:
    """Asks as the page does, unless told otherwise."""

    def __init__(self, server: LocalServer):
        self.server = server
        self.port = server.server_port
        status, page, self.page_headers = self.get("/")
        assert status == 200
        found = re.search(r'name="token" content="([^"]+)"', page)
        self.token = found[1] if found else server.token

    def get(self, path: str, **headers) -> tuple[int, str, dict]:
        return self.request("GET", path, None, headers)

    def ask(self, path: str, values, **headers) -> tuple[int, dict]:
        """Status and answer; `Header=None` leaves a header out. `values` may be ready bytes."""
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        usual = {"Origin": f"http://127.0.0.1:{self.port}", "Content_Type": "application/json",
                 "X_Token": self.token}
        status, text, _ = self.request("POST", path, body, {**usual, **headers})
        return status, json.loads(text)

    def request(self, method: str, path: str, body, headers: dict) -> tuple[int, str, dict]:
        headers = {name.replace("_", "-"): value for name, value in headers.items()
                   if value is not None}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace"), dict(answer.getheaders())
        finally:
            connection.close()

    def raw(self, content: bytes) -> int:
        """The status that these bytes get."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(content)
            with contextlib.suppress(OSError):  # the server may have answered and closed already
                connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").readline()
        return int(answer.split()[1])


@contextmanager
def serving(site):
    """A client of a server that serves `site`."""
    server = LocalServer(site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Client(server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

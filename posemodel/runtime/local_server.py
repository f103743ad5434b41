"""A page served from this machine: files to GET, questions in JSON to POST, and nobody else let in.

Any web page that is open in the same browser can send requests to a local server. So a request is
answered only if it names this server as its host (a foreign name could be made to point here); a
question must also come from this server's own page (`Origin`), be JSON, which other origins cannot
send unasked, and carry the token that this start wrote into the page.
"""

import hmac
import json
import logging
import secrets
import sys
import threading
import webbrowser
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import PurePath
from typing import Protocol

from posemodel.runtime.errors import UserError

TOKEN_MARK = "{{token}}"  # stands in the page where the token belongs
_SMALL = 64 * 2**10  # bytes of a question that says no other limit
_DISCARDED = 64 * 2**20  # bytes of a refused question that are read, so that it sees the answer
_PATIENCE = 20  # seconds without a byte after which a connection is closed
_CONNECTIONS = 64

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that gets an error status; the message goes to the page."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Site(Protocol):
    """What a `LocalServer` serves."""

    large: Mapping[str, int]
    """questions that may be larger than 64 KiB, and how large in bytes; one such at a time"""

    def get(self, path: str) -> tuple[str, bytes]:
        """Content type and content. Raises: `Refused`."""

    def post(self, path: str, values: dict) -> dict:
        """The answer to a question. Raises: `Refused`, `UserError` (status 400)."""


class LocalServer(ThreadingHTTPServer):
    """Serves a site until `shutdown`."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, site: Site, *, port: int = 0, address: str = "127.0.0.1"):
        """
        Args:
            port: 0 takes a free one.
            address: the IP address to listen on; anything but 127.0.0.1 lets other machines in.

        Raises: `UserError` when it cannot listen there.
        """
        self.site = site
        self.token = secrets.token_urlsafe(24)
        self.large_question = threading.Lock()
        self._places = threading.BoundedSemaphore(_CONNECTIONS)
        try:
            super().__init__((address, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot listen on {address}, port {port} ({reason}); --port 0 takes "
                            "a free port") from error
        self.hosts = {f"{address}:{self.server_port}"}
        if address == "127.0.0.1":
            self.hosts.add(f"localhost:{self.server_port}")
        self.url = f"http://{address}:{self.server_port}/"

    def process_request(self, request, client_address) -> None:
        """One thread for each connection, up to a limit; those beyond it are closed."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address) -> None:
        """Gives the place back when the connection ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request, client_address) -> None:
        """Connections that break off are no news; anything else is a fault of ours."""
        if isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            log.debug("connection from %s broke off", client_address)
        else:
            log.exception("connection from %s", client_address)

    def serve_until_interrupted(self, *, browser: bool) -> None:
        """Serve until Ctrl-C; first open the page in the user's browser if asked to."""
        if browser:
            threading.Thread(target=webbrowser.open, args=(self.url,), daemon=True).start()
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            print("stopped")
        finally:
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # with headers, whoever asks
    timeout = _PATIENCE
    wbufsize = -1  # head and body leave in one piece
    disable_nagle_algorithm = True
    server_version = "posemodel"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong: always the fault of who asks."""
        status = {501: 405, 505: 400}.get(int(code), int(code))
        self.close_connection = True
        self._send_json(status, {"error": message or "this request is refused"})

    def log_message(self, format: str, *arguments) -> None:
        log.debug(format, *arguments)

    def _answer(self, make) -> None:
        try:
            make()
        except Refused as refused:
            self._send_json(refused.status, {"error": str(refused)})
        except UserError as error:
            self._send_json(400, {"error": " ".join(str(error).split())})
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            log.exception("%s %s", self.command, self.path)
            self._send_json(500, {"error": "the server failed; its terminal says why"})

    def _get(self) -> None:
        self._check_host()
        if self._body_size():
            self.close_connection = True
            raise Refused(400, "a GET request has no body")
        kind, content = self.server.site.get(self.path)
        if kind.startswith("text/html"):
            content = content.replace(TOKEN_MARK.encode(), self.server.token.encode())
        self._send(200, kind, content)

    def _post(self) -> None:
        size = self._body_size()
        large = self.path in self.server.site.large
        limit = self.server.site.large.get(self.path, _SMALL)
        try:
            self._check_host()
            self._check_sender()
            if size > limit:
                raise Refused(413, f"{size:,} bytes; at most {limit:,} are taken")
            if large and not self.server.large_question.acquire(blocking=False):
                raise Refused(429, "another upload is still running; try again")
        except Refused:
            self._discard(size)
            raise
        try:
            values = self._values(size)
            answer = self.server.site.post(self.path, values)
        finally:
            if large:
                self.server.large_question.release()
        self._send_json(200, answer)

    def _check_host(self) -> None:
        if self._only("Host") not in self.server.hosts:
            raise Refused(403, "this server answers under its own address only")
        origin = self._only("Origin")
        if origin is not None and origin.removeprefix("http://") != self.headers["Host"]:
            raise Refused(403, "this server answers its own page only")

    def _check_sender(self) -> None:
        if self._only("Origin") is None:
            raise Refused(403, "this server answers its own page only")
        kind = (self._only("Content-Type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "questions are application/json")
        token = self._only("X-Token") or ""
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise Refused(403, "this page is from an earlier start of the server; reload it")

    def _only(self, name: str) -> str | None:
        values = self.headers.get_all(name) or []
        if len(values) > 1:
            raise Refused(400, f"more than one {name}")
        return values[0] if values else None

    def _body_size(self) -> int:
        text = self._only("Content-Length")
        if "Transfer-Encoding" in self.headers or (text is None and self.command == "POST"):
            self.close_connection = True
            raise Refused(411, "say how long the body is (Content-Length)")
        text = text or "0"
        if not (text.isascii() and text.isdigit()) or len(text) > 15:
            self.close_connection = True
            raise Refused(400, "Content-Length is no number")
        return int(text)

    def _values(self, size: int) -> dict:
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError("cut off")
        try:
            values = json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the question is no JSON") from error
        if not isinstance(values, dict):
            raise Refused(400, "the question is no JSON object")
        return values

    def _discard(self, size: int) -> None:
        # A connection that closes on unread bytes may take its answer with it.
        self.close_connection = True
        left = min(size, _DISCARDED)
        while left:
            piece = self.rfile.read(min(left, 2**16))
            if not piece:
                return
            left -= len(piece)

    def _send_json(self, status: int, values: dict) -> None:
        content = json.dumps(values, allow_nan=False).encode()
        self._send(status, "application/json; charset=utf-8", content)

    def _send(self, status: int, kind: str, content: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
            self.wfile.flush()
        except (ConnectionError, TimeoutError):
            self.close_connection = True


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


# --- for sites ------------------------------------------------------------------------------------


def static_files(package: str) -> dict[str, tuple[str, bytes]]:
    """Content type and content by path: the style sheets and scripts of a package, those that all
    pages share, and as "/" its index.html, which begins with the title, under the shared head."""
    kinds = {".css": "text/css", ".js": "text/javascript"}
    shared, own = resources.files("posemodel.runtime") / "page", resources.files(package)
    files = {f"/{file.name}": (f"{kinds[suffix]}; charset=utf-8", file.read_bytes())
             for folder in (shared, own) for file in folder.iterdir()
             if (suffix := PurePath(file.name).suffix) in kinds}
    page = (shared / "head.html").read_bytes() + (own / "index.html").read_bytes()
    return {"/": ("text/html; charset=utf-8", page), **files}


def field(values: dict, name: str, kind: type):
    """A value that must be there and be of a type. Raises: `Refused`."""
    value = values.get(name)
    if type(value) is not kind:
        raise Refused(400, f"{name} is missing or not of the expected kind")
    return value

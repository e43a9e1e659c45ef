"""A way to an S3 server that can be cut, slowed to nothing in the middle of a transfer, or made to refuse."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SKEWED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>RequestTimeTooSkewed</Code><Message>The difference between '
    b"the request time and the current time is too large.</Message></Error>"
)


class Way:
    """A port that passes requests on to a server.

    Attributes:
        asked: The requests that have come, as "METHOD path".
        cut: Of a request, whether its connection is closed without an answer.
        late: Seconds that every answer is held back.
        off: Seconds between this machine's clock and that of the server; beyond 15 minutes it refuses, as S3 does.
    """

    def __init__(self, address: str) -> None:
        self.asked: list[str] = []
        self.cut: Callable[[str], bool] = lambda request: False
        self.late = 0.0
        self.off = 0.0
        self._target = urlsplit(address).netloc
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Listens, at the same port each time."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Listens no more: connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def passed(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Returns the server's answer."""
        connection = HTTPConnection(self._target, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


@contextmanager
def way_to(address: str) -> Iterator[Way]:
    """Opens a way to a server."""
    way = Way(address)
    way.open()
    try:
        yield way
    finally:
        way.close()


def _handler(way: Way) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # clients wait for its 100 before they send

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = f"{self.command} {self.path}"
            way.asked.append(request)
            time.sleep(way.late)
            if way.cut(request):
                self.close_connection = True
                return
            if abs(way.off) > 900:
                status, headers, content = 403, {"Content-Type": "application/xml"}, SKEWED
            else:
                asked = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                status, headers, content = way.passed(self.command, self.path, body, asked)
            self.send_response_only(status)
            self.send_header("Date", formatdate(self._now(), usegmt=True))
            for name, value in headers.items():
                if name.lower() not in ("date", "connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def _now(self) -> float:
            return time.time() - way.off

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler

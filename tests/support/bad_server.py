"""A web server on 127.0.0.1 that truncates, stalls, redirects and corrupts."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class BadServer:
    """Serves ``content`` at every path; the path's first word says how.

    ``/good``, ``/redirect``, ``/corrupt``, ``/missing`` (404), ``/broken`` (500), ``/truncate``
    (breaks off in the middle, every time), ``/once`` (breaks off the first time, continues after),
    ``/norange`` (likewise, but starts over when asked to continue), ``/stall`` (stops in the middle
    and keeps the connection), ``/elsewhere`` (continues at another place than asked), ``/lost``
    (redirects to what is no address), ``/page`` (an error page, as if it were the file),
    ``/short`` (half of the content, and no length that says so).

    Attributes:
        content: the bytes served.
        requests: path and Range header of every request.
    """

    def __init__(self) -> None:
        self.content = bytes(range(256)) * 2000
        self.requests: list[tuple[str, str | None]] = []
        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def url(self, how: str) -> str:
        """The address that behaves as ``how`` says."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{how}/file.bin"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(outer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                how = self.path.split("/")[1]
                asked = self.headers.get("Range")
                first = not any(path == self.path for path, _ in outer.requests)
                outer.requests.append((self.path, asked))
                if how == "redirect":
                    self.send_response(302)
                    self.send_header("Location", outer.url("good"))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif how == "lost":
                    self.send_response(302)
                    self.send_header("Location", "http://[bad")
                    self.end_headers()
                elif how in ("page", "short"):
                    self.send_response(200)
                    self.end_headers()
                    half = outer.content[: len(outer.content) // 2]
                    self.wfile.write(b"<html>soon back</html>" if how == "page" else half)
                elif how in ("missing", "broken"):
                    self.send_error(404 if how == "missing" else 500)
                else:
                    self._send(how, asked, first)

            def _send(self, how: str, asked: str | None, first: bool) -> None:
                body = outer.content if how != "corrupt" else outer.content[::-1]
                begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                if how in ("norange", "corrupt"):
                    begin = 0
                if begin >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206 if begin else 200)
                self.send_header("Content-Length", str(len(body) - begin))
                if begin:
                    place = 0 if how == "elsewhere" else begin
                    self.send_header("Content-Range", f"bytes {place}-{len(body) - 1}/{len(body)}")
                self.end_headers()
                bad = how in ("truncate", "stall") or (
                    how in ("once", "norange", "elsewhere") and first
                )
                end = begin + (len(body) - begin) // 2 if bad else len(body)
                self.wfile.write(body[begin:end])
                self.wfile.flush()
                if how == "stall":
                    outer.released.wait(5.0)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        return Handler


def unreachable() -> str:
    """An address where nothing listens."""
    return "http://127.0.0.1:9/file.bin"

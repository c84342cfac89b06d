"""An S3 endpoint on loopback that holds contents as Software Heritage's bucket does, and fails on request."""

import gzip
import socket
import struct
import threading
import time
from collections.abc import Iterable
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PREFIX = "/softwareheritage/content/"


class S3Server(ThreadingHTTPServer):
    """Serves `objects`; use it as a context manager.

    Attributes:
        objects: the bucket's objects by blob id, compressed.
        faults: by blob id, what the next requests for it meet, one after another: an HTTP status ("503"), "reset"
            (the connection), "cut" (in the middle of the response) or "slow" (to begin). "..." after a
            fault stands for that fault again, for ever.
        log: the blob ids that were asked for, in order.
        latency: seconds before each response.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, latency: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.log: list[str] = []
        self.latency = latency
        self.slow_seconds = 1.0

    @property
    def url(self) -> str:
        """The endpoint, as AWS_ENDPOINT_URL_S3 takes it."""
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "S3Server":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def add(self, content: bytes, faults: Iterable[str] = (), compressed: bytes | None = None) -> str:
        """Add an object, `content` compressed or the bytes that `compressed` gives, and return its blob id."""
        blob_id = sha1(content).hexdigest()
        self.objects[blob_id] = gzip.compress(content) if compressed is None else compressed
        self.faults[blob_id] = list(faults)
        return blob_id

    def next_fault(self, blob_id: str) -> str:
        """The fault that a request for `blob_id` meets now; empty for none."""
        faults = self.faults.get(blob_id, [])
        if not faults:
            return ""
        return faults[0] if faults[1:] == ["..."] else faults.pop(0)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    server: S3Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        blob_id = self.path.removeprefix(PREFIX)
        self.server.log.append(blob_id)
        fault = self.server.next_fault(blob_id)
        time.sleep(self.server.slow_seconds if fault == "slow" else self.server.latency)
        content = self.server.objects.get(blob_id)
        if fault == "reset":
            # A linger of 0 seconds: the connection is reset instead of closed in order.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif fault.isdigit():
            codes = {"503": "SlowDown", "403": "AccessDenied", "404": "NoSuchBucket"}
            self._answer(int(fault), f"<Error><Code>{codes.get(fault, 'Other')}</Code></Error>".encode())
        elif content is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer(200, content, is_cut=fault == "cut")

    def _answer(self, status: int, body: bytes, is_cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if is_cut else body)
        self.close_connection = is_cut

    def log_message(self, *_: object) -> None:
        """Say nothing."""

"""Stores on this machine's loopback: a web server that misbehaves by a plan, and moto's S3."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

FAULTS = ("refuse", "drop", "truncate", "delay", "flip")
"""Answer 503; close without an answer; close half way; wait; change one byte."""


class Store:
    """Serves a folder by GET with ranges.

    Each file's first requests suffer the faults in their order, then it is served well.
    """

    def __init__(
        self,
        folder: Path,
        faults: Sequence[str] = (),
        delay: float = 0.05,
        bytes_per_second: float | None = None,
    ) -> None:
        self.folder, self.faults, self.delay = folder, list(faults), delay
        self.requests: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self._suffered: Counter[str] = Counter()
        self.queries: set[str] = set()
        self.down = threading.Event()
        """While set, every request hangs."""
        self.hook: Callable[[str], None] = lambda name: None
        """Called with the name of each file before it is answered."""
        self._rate, self._busy, self._line = bytes_per_second, 0.0, threading.Lock()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                with suppress(ConnectionError):  # a client that was killed
                    store._answer(self)

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.down.clear()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        name = unquote(parts.path).lstrip("/")
        self.queries.add(parts.query)
        self.requests[name] += 1
        self.hook(name)
        while self.down.is_set():
            time.sleep(0.02)
        fault = self._fault(name, handler.command)
        path = self.folder / name
        if fault == "drop":
            handler.close_connection = True
            return
        if fault == "refuse":
            handler.send_error(503)
            return
        if fault == "delay":
            time.sleep(self.delay)
        if not path.is_file():
            handler.send_error(404)
            return
        data = path.read_bytes()
        start, end = _range(handler.headers.get("Range"), len(data))
        body = data[start:end]
        if fault == "flip":
            body = _flipped(body)
        handler.send_response(206 if handler.headers.get("Range") else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault == "truncate":
            handler.wfile.write(body[: len(body) // 2])
            handler.close_connection = True
            return
        self.served[name] += len(body)
        self._write(handler, body)

    def _fault(self, name: str, method: str) -> str:
        if method != "GET":
            return ""
        self._suffered[name] += 1
        number = self._suffered[name] - 1
        if number >= len(self.faults):
            return ""
        self.injected[self.faults[number]] += 1
        return self.faults[number]

    def _write(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if self._rate is None:
            handler.wfile.write(body)
            return
        for start in range(0, len(body), 1 << 18):
            piece = body[start : start + (1 << 18)]
            with self._line:  # one line for all connections
                now = time.monotonic()
                self._busy = max(now, self._busy) + len(piece) / self._rate
                free = self._busy
            time.sleep(max(0.0, free - now))
            handler.wfile.write(piece)


def _range(header: str | None, size: int) -> tuple[int, int]:
    if not header:
        return 0, size
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first), min(int(last) + 1 if last else size, size)


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


@contextmanager
def serve(folder: Path, *args: object, **options: object) -> Iterator[Store]:
    """Serve a folder while the block runs; see :class:`Store`."""
    store = Store(folder, *args, **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        store.close()


@contextmanager
def s3_bucket() -> Iterator[str]:
    """Give the URL of a bucket of moto's server on loopback; skips where moto is not installed."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    import fsspec

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        driver = fsspec.get_filesystem_class("s3")
        driver.clear_instance_cache()  # one may know the address of an earlier server
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
        driver.clear_instance_cache()
    server.stop()


def files_of_shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.h5") if path.is_file())


def cache_bytes(cache: Path) -> int:
    """Return what a watcher sees of a cache's shards: the full size of every file."""
    total = 0
    for entry in os.scandir(cache / "shards"):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total

"""Stores on this machine's loopback that misbehave by a plan: a web server, and moto's S3."""

from __future__ import annotations

import fcntl
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

FAULTS = ("refuse", "drop", "truncate", "flip", "delay")
"""Answer 503; close without an answer; close half way; change one byte; wait.

What waits is right, so it comes last: a file that is fetched once suffers all of them.
"""


@dataclass(slots=True)
class Answer:
    """What a server says."""

    status: int
    headers: dict[str, str]
    body: bytes


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

            def answer(self) -> None:
                with suppress(ConnectionError):  # a client that was killed
                    store._answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.down.clear()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        sent = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        parts = urlsplit(handler.path)
        name = self.name(unquote(parts.path).lstrip("/"))
        self.queries.add(parts.query)
        self.requests[name] += 1
        self.hook(name)
        while self.down.is_set():
            time.sleep(0.02)
        fault = self._fault(name, handler.command)
        if fault == "drop":
            handler.close_connection = True
            return
        if fault == "refuse":
            handler.send_error(503)
            return
        if fault == "delay":
            time.sleep(self.delay)
        answer = self.answer(handler, name, sent)
        body = answer.body
        if fault == "flip":
            body = _flipped(body)
        handler.send_response_only(answer.status)
        for header, value in answer.headers.items():
            handler.send_header(header, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault == "truncate":
            handler.wfile.write(body[: len(body) // 2])
            handler.close_connection = True
            return
        self.served[name] += len(body)
        self._write(handler, body)

    def name(self, path: str) -> str:
        """Return the name of a file below the folder, by which it is counted."""
        return path

    def answer(self, handler: BaseHTTPRequestHandler, name: str, sent: bytes) -> Answer:
        """Return what is said to a request if nothing goes wrong."""
        path = self.folder / name
        if not path.is_file():
            return Answer(404, {"Content-Length": "0"}, b"")
        size = path.stat().st_size
        asked = handler.headers.get("Range")
        start, end = _range(asked, size)
        with open(path, "rb") as file:
            file.seek(start)
            body = file.read(end - start)
        headers = {
            "Content-Length": str(len(body)),
            "Accept-Ranges": "bytes",
            "Content-Range": f"bytes {start}-{end - 1}/{size}",
        }
        return Answer(206 if asked else 200, headers, body)

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


class S3Store(Store):
    """moto's S3, with the faults of :class:`Store` for GET requests of objects.

    moto's state belongs to the process: all servers in it have the same buckets, so each test needs
    a bucket of its own. moto does not promise to be safe with threads, so it is asked one request
    at a time.
    """

    _moto = threading.Lock()

    def __init__(self, faults: Sequence[str] = (), **options: Any) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._application = DomainDispatcherApplication(create_backend_app)
        super().__init__(Path(), faults, **options)

    def answer(self, handler: BaseHTTPRequestHandler, name: str, sent: bytes) -> Answer:
        """Return what moto says."""
        from werkzeug.test import EnvironBuilder, run_wsgi_app

        builder = EnvironBuilder(
            path=handler.path, base_url=self.url, method=handler.command, data=sent
        )
        builder.headers.clear()
        builder.headers.extend(handler.headers.items())
        with self._moto:
            pieces, status, found = run_wsgi_app(self._application, builder.get_environ())
            body = b"".join(pieces)
        headers = {key.title(): value for key, value in found.items()}
        if handler.command != "HEAD":
            headers["Content-Length"] = str(len(body))
        return Answer(int(status.split()[0]), headers, body)

    def name(self, path: str) -> str:
        """Return what follows the bucket; nothing for the bucket itself."""
        return path.partition("/")[2]

    def _fault(self, name: str, method: str) -> str:
        # Nothing vouches for the bytes of a listing.
        return super()._fault(name, method) if name else ""


SECRET = "TOPSECRET0TOPSECRET0"
"""Part of every key and signature: in no message and no file."""
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": f"AKIA{SECRET}",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    # What this machine has set for its own user, and its proxy, take no part.
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
_buckets = itertools.count()


@contextmanager
def s3(faults: Sequence[str] = (), **options: Any) -> Iterator[tuple[S3Store, str]]:
    """Give moto's S3 on loopback and the URL of a new bucket; skips where moto is not installed.

    The environment names server and credentials: the driver finds them by its own means.
    """
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    import fsspec

    store = S3Store(faults, **options)
    bucket = f"bucket-{next(_buckets)}"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in S3_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", store.url)
        driver = fsspec.get_filesystem_class("s3")
        driver.clear_instance_cache()  # one may know the address of an earlier server
        try:
            fsspec.filesystem("s3").mkdir(bucket)
            yield store, f"s3://{bucket}"
        finally:
            driver.clear_instance_cache()
            store.close()


@contextmanager
def serve_by(
    kind: str, folder: Path, faults: Sequence[str] = (), **options: Any
) -> Iterator[tuple[Store, str]]:
    """Serve a folder by "http" (with a signature in the URL), "s3" or "hf"; give server and URL."""
    from bertds.system import storage
    from tests.support.hub_server import hub

    if kind == "hf":
        with hub(folder, faults, **options) as (hub_store, url):
            yield hub_store, url
        return
    if kind == "http":
        with serve(folder, faults, **options) as store:
            yield store, f"{store.url}?X-Amz-Signature={SECRET}"
        return
    with s3(**options) as (store, url):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            storage.upload(path, f"{url}/{path.relative_to(folder).as_posix()}")
        store.faults += faults
        store.requests.clear()
        yield store, url


def files_of_shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.h5") if path.is_file())


def cache_bytes(cache: Path) -> int:
    """Return what a watcher sees of a cache's shards: the full size of every file.

    Under the cache's lock: in a folder that changes meanwhile, one file may be seen by two names.
    """
    with open(cache / "shards" / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        files = [entry for entry in os.scandir(cache / "shards") if entry.name != "lock"]
        return sum(entry.stat().st_size for entry in files)

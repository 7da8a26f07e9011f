"""Files in a store, by URL. This is the only module that uses fsspec.

``s3://``, ``gs://``, ``az://``, ``hf://``, ``https://``, ``file://`` and all other protocols with
an fsspec driver. The drivers find credentials in their own way; none are handled here. A request
that fails for a temporary reason is repeated, with growing pauses. fsspec is imported with the
first URL, so local paths cost nothing.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bertds.errors import ConfigError, DataError, StoreError
from bertds.system.fault_points import passed
from bertds.system.logs import log
from bertds.system.secrets import masked

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

REQUEST_BYTES = 16 << 20
"""Bytes per request: small enough to be repeated, large enough for full speed."""
PATIENCE_SECONDS = 300.0
"""How long a request is repeated by default."""
DOWNLOAD_TRIES = 4
"""Maximum number of downloads of a file that arrives damaged."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:::[A-Za-z0-9+.-]+)*://")
_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
    **dict.fromkeys(("http", "https"), "http"),
}
"""The extra of bertds that installs a protocol's driver."""
_WRONG = (TypeError, AttributeError, NotImplementedError, ValueError, KeyError)
"""Errors of a driver for a request that will never succeed."""


def is_url(text: object) -> bool:
    """Return whether a text is a URL of a store rather than a local path."""
    return isinstance(text, str) and _URL.match(text) is not None


def is_read_only(url: str) -> bool:
    """Return whether a URL is of a web server, whose driver can neither list nor write."""
    return url.lower().startswith(("http://", "https://"))


def why_not_written(url: str) -> str:
    """Return why files cannot be written to a URL, with the remedy; "" if they can."""
    if is_read_only(url):
        return "a web server cannot be written to; use s3://, gs://, az:// or file://"
    if url.lower().startswith("hf://") and not url.lower().startswith("hf://buckets/"):
        return (
            "each file would be a commit of its own, of which the Hub takes a limited number per "
            "hour; write to a local folder and upload it in one commit with `hf upload`"
        )
    return ""


def join(url: str, name: str) -> str:
    """Return the URL of a file below a folder's URL, with the query of a web address at the end."""
    place, question, query = url.partition("?") if url.startswith("http") else (url, "", "")
    return f"{place.rstrip('/')}/{name}{question}{query}"


def open_store(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the driver for a URL, and the file's name within it.

    Raises:
        ConfigError: there is no such driver, or its package is not installed.
    """
    import fsspec

    protocol = url.partition("://")[0].rpartition("::")[2].lower()
    options: dict[str, object] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            # The driver would wait five minutes for a server that accepts and says nothing.
            limits = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
            options["client_kwargs"] = {"timeout": limits}
        if protocol not in ("file", "local", "memory"):
            options["use_listings_cache"] = False
        store, name = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = (
            f"install it with: pip install 'bertds[{extra}]'" if extra else "install its package"
        )
        raise ConfigError(
            f"{masked(url)}: no driver for {protocol}:// ({error}); {remedy}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{masked(url)}: {masked(error)}") from None
    return store, name


def patience(seconds: float) -> float:
    """Return for how long a store may fail to answer, which is asked again with each failure."""
    return passed("store.patience", seconds)


def lasts(error: BaseException) -> bool:
    """Return whether a request that failed in this way would fail again."""
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, *_WRONG)):
        return True
    status = _status(error)
    if 400 <= status < 500:
        return status not in (408, 425, 429)
    kind = type(error).__name__.lower()
    return "credential" in kind or kind == "offlinemodeisenabled"


def _behind(error: Exception) -> Exception:
    """Return what an error is about: the driver of web servers calls every failure a lost file."""
    lost = isinstance(error, FileNotFoundError)
    return error.__cause__ if lost and isinstance(error.__cause__, Exception) else error


def _status(error: BaseException) -> int:
    """Return the HTTP status that a driver's error is about, or 0."""
    # aiohttp's errors have it themselves; those of the Hugging Face Hub have the response.
    holder = error if hasattr(error, "status") else getattr(error, "response", None)
    status = getattr(holder, "status", getattr(holder, "status_code", 0))
    return status if isinstance(status, int) else 0


def reason(error: BaseException) -> str:
    """Return what went wrong in one line, without credentials."""
    text = " ".join(masked(error).split())
    return f"{type(error).__name__}{f': {text:.200}' if text else ''}"


def insist(
    request: Callable[[], T],
    url: str,
    seconds: float = PATIENCE_SECONDS,
    stopped: threading.Event | None = None,
) -> T:
    """Repeat a request until it succeeds.

    Args:
        request: may be called several times.
        url: for messages.
        seconds: how long to repeat it.
        stopped: gives up early if it is set.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the request was refused permanently.
        StoreError: it still failed after ``seconds``.
    """
    began, pause, tries, said = time.monotonic(), FIRST_PAUSE, 0, 0.0
    while True:
        tries += 1
        try:
            return request()
        except (ConfigError, DataError, StoreError):
            raise
        except Exception as raised:
            error = _behind(raised) if is_read_only(url) else raised
            # Errors that repetition cannot change: no such file, no permission, a request that is
            # wrong.
            if isinstance(error, FileNotFoundError) or _status(error) == 404:
                raise FileNotFoundError(f"{masked(url)}: no such file") from None
            if lasts(error):
                raise DataError(f"{masked(url)}: {reason(error)}") from error
            now = time.monotonic()
            given_up = stopped is not None and stopped.is_set()
            if given_up or now + pause - began > patience(seconds):
                raise StoreError(
                    f"{masked(url)}: {reason(error)}; gave up after {tries} tries in "
                    f"{now - began:.0f} s"
                ) from error
            if tries > 1 and now - said > 30.0:  # a single failure is not worth a warning
                said = now
                log.warning("%s: %s; retrying", masked(url), reason(error))
        # Random pauses: machines that failed together must not all return together.
        (stopped or threading.Event()).wait(pause * random.uniform(0.75, 1.25))
        pause = min(2 * pause, LONGEST_PAUSE)


def read_range(url: str, start: int, end: int, size: int) -> bytes:
    """Return bytes ``[start, end)`` of a file of ``size`` bytes, in one request.

    Raises:
        OSError: fewer bytes were received.
    """
    store, name = open_store(url)
    # The Hub's driver would read 5 MiB more each time, for a reader that continues there.
    exactly = {"cache_type": "none"} if store.protocol == "hf" else {}
    data: bytes = store.cat_file(name, start=start, end=end, **exactly)
    if len(data) == size != end - start:  # a web server without support for ranges
        data = data[start:end]
    if len(data) != end - start:
        raise OSError(f"{len(data)} bytes received, {end - start} requested")
    return data


def read_bytes(url: str, seconds: float = PATIENCE_SECONDS) -> bytes:
    """Return the contents of a small file.

    Raises:
        FileNotFoundError, DataError, StoreError: see :func:`insist`.
    """

    def request() -> bytes:
        store, name = open_store(url)
        data: bytes = store.cat_file(name)
        return data

    return insist(request, url, seconds)


def read_agreed(url: str, seconds: float) -> bytes:
    """Return a small file without a checksum: two consecutive reads must agree.

    Raises:
        FileNotFoundError, DataError, StoreError: see :func:`insist`.
    """
    data = read_bytes(url, seconds)
    for _ in range(10):
        before, data = data, read_bytes(url, seconds)
        if data == before:
            return data
    raise StoreError(f"{masked(url)}: each read returns different bytes")


def file_size(url: str, seconds: float = PATIENCE_SECONDS) -> int:
    """Return the size of a file in bytes.

    Raises:
        FileNotFoundError, DataError, StoreError: see :func:`insist`.
    """

    def request() -> int:
        store, name = open_store(url)
        found = store.info(name)
        if found.get("type") == "directory":
            raise FileNotFoundError(name)
        if found.get("size") is None:
            raise DataError(f"{masked(url)}: the server does not report the size of the file")
        return int(found["size"])

    return insist(request, url, seconds)


def list_files(url: str, seconds: float = PATIENCE_SECONDS) -> dict[str, int]:
    """Return every file below a folder, by name relative to it, with its size; {} if none.

    Raises:
        DataError, StoreError: see :func:`insist`.
    """

    def request() -> dict[str, int]:
        store, name = open_store(url)
        store.invalidate_cache()
        top = name.rstrip("/") + "/"
        try:
            found = store.find(name, detail=True)
        except FileNotFoundError:
            return {}
        return {
            path[len(top) :]: int(facts.get("size") or 0)
            for path, facts in found.items()
            if path.startswith(top)
        }

    return insist(request, url, seconds)


def download(
    url: str, path: Path, size: int, sha256: str, seconds: float = PATIENCE_SECONDS
) -> None:
    """Copy a file from the store, verified and flushed to the disk.

    Raises:
        FileNotFoundError, StoreError: see :func:`insist`.
        DataError: the store has different bytes.
    """
    for _ in range(DOWNLOAD_TRIES):
        digest = hashlib.sha256()
        with open(path, "wb") as file:
            for start in range(0, size, REQUEST_BYTES):
                end = min(start + REQUEST_BYTES, size)
                data = insist(partial(read_range, url, start, end, size), url, seconds)
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() == sha256:
            return
        log.warning("%s: damaged in transfer; downloading it again", masked(url))
    raise DataError(f"{masked(url)}: the bytes differ from those that were written (SHA-256)")


def _has_folders(store: AbstractFileSystem) -> bool:
    """Return whether a store is a file system of this machine: ``file://``."""
    names = store.protocol if isinstance(store.protocol, tuple) else (store.protocol,)
    return "file" in names


def upload(path: Path, url: str, *, stopped: threading.Event | None = None) -> None:
    """Copy a local file to the store, so that its name never refers to an incomplete file.

    Object stores show a file only when all of it has arrived. On a file system (``file://``) it is
    written under another name and renamed.

    Raises:
        DataError, StoreError: see :func:`insist`.
    """

    def request() -> None:
        store, name = open_store(url)
        if _has_folders(store):
            store.makedirs(name.rpartition("/")[0], exist_ok=True)
            aside = f"{name}.uploading"
            store.put_file(str(path), aside)
            store.mv(aside, name)
        else:
            store.put_file(str(path), name)
        # Catches a driver that reports success although bytes are missing.
        sent, there = path.stat().st_size, store.info(name).get("size")
        if there != sent:
            raise OSError(f"{there} bytes arrived, {sent} were sent")

    insist(request, url, stopped=stopped)


def remove(url: str) -> None:
    """Remove a file; a missing one is not an error.

    Raises:
        DataError, StoreError: see :func:`insist`.
    """

    def request() -> None:
        store, name = open_store(url)
        with suppress(FileNotFoundError):
            store.rm_file(name)

    insist(request, url)


def remove_empty_folder(url: str) -> None:
    """Remove an empty folder in a store that has real folders."""
    store, name = open_store(url)
    if _has_folders(store):
        with suppress(OSError):
            store.rmdir(name)

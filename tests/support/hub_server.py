"""A Hugging Face Hub on loopback: what its driver for fsspec asks for when it reads a dataset.

The requests and answers are those of the Hub's HTTP API, as ``huggingface_hub`` makes and reads
them: facts of a repository, pages of a folder's listing, and files, which for large ones are a
redirect to a signed URL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.support.store_server import SECRET, Answer, Store

DATASET = "lab/corpus"
REVISIONS = ("main", "v1")
TOKEN = f"hf_{SECRET}"
SIGNATURE = f"X-Amz-Signature={SECRET}"
PAGE = 5
"""Entries of one page of a listing; the Hub has 1,000."""


class HubStore(Store):
    """One private dataset, which is a folder, with the faults of :class:`Store` for its files."""

    refused = ""
    """A file that the token may not read."""

    def name(self, path: str) -> str:
        """Return the name of a file in the dataset; nothing for all other requests."""
        top, _, rest = path.partition("/")
        if top == "signed":
            return rest
        found = _file(path)
        return "" if found is None or _is_large(found) else found

    def _fault(self, name: str, method: str) -> str:
        # Nothing vouches for the bytes of a listing.
        return super()._fault(name, method) if name else ""

    def answer(self, handler: BaseHTTPRequestHandler, name: str, sent: bytes) -> Answer:
        """Return what the Hub says."""
        parts = urlsplit(handler.path)
        path = unquote(parts.path).lstrip("/")
        if path.startswith("signed/"):
            if parts.query != SIGNATURE:
                return Answer(403, {"Content-Length": "0"}, b"")
            return super().answer(handler, name, sent)
        if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _error(401, "RepoNotFound")
        file = _file(path)
        if file is None:
            return self._facts(path, parse_qs(parts.query))
        if file == self.refused:
            return _error(403, "GatedRepo")
        if not (self.folder / file).is_file():
            return _error(404, "EntryNotFound")
        if _is_large(file):
            place = f"{self.url}/signed/{file}?{SIGNATURE}"
            return Answer(302, {"Location": place, "Content-Length": "0"}, b"")
        return super().answer(handler, file, sent)

    def _facts(self, path: str, query: dict[str, list[str]]) -> Answer:
        """Return facts of the repository, or a page of a listing."""
        top = f"api/datasets/{DATASET}"
        if path != top and not path.startswith(f"{top}/"):
            return _error(404, "RepoNotFound")
        what, _, rest = path[len(top) + 1 :].partition("/")
        revision, _, folder = rest.partition("/")
        if what and revision not in REVISIONS:
            return _error(404, "RevisionNotFound")
        if what in ("", "revision"):
            return _said({"id": DATASET, "sha": "0" * 40, "private": True})
        if what != "tree" or not (self.folder / folder).is_dir():
            return _error(404, "EntryNotFound")
        pattern = "**/*" if query["recursive"] == ["true"] else "*"
        entries = sorted((self.folder / folder).glob(pattern))
        start = int(query.get("cursor", ["0"])[0])
        answer = _said([self._entry(entry) for entry in entries[start : start + PAGE]])
        if start + PAGE < len(entries):
            # As on the Hub, the address is whole: the driver adds nothing to it.
            more = f"recursive={query['recursive'][0]}&cursor={start + PAGE}"
            answer.headers["Link"] = f'<{self.url}/{path}?{more}>; rel="next"'
        return answer

    def _entry(self, path: Path) -> dict[str, object]:
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        return {"type": "file", "path": name, "oid": "0" * 40, "size": path.stat().st_size}


def _file(path: str) -> str | None:
    """Return the file that a request is for, or None: it is for facts."""
    top = f"datasets/{DATASET}/resolve/"
    if not path.startswith(top):
        return None
    revision, _, name = path[len(top) :].partition("/")
    return name if revision in REVISIONS else None


def _is_large(name: str) -> bool:
    return name.endswith(".h5")


def _said(value: object) -> Answer:
    body = json.dumps(value).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return Answer(200, headers, body)


def _error(status: int, code: str) -> Answer:
    return Answer(status, {"X-Error-Code": code, "Content-Length": "0"}, b"")


@contextmanager
def hub(folder: Path, faults: Sequence[str] = (), **options: Any) -> Iterator[tuple[HubStore, str]]:
    """Serve a folder as a private dataset while the block runs; give server and URL.

    The environment names server and token: the driver finds them by its own means. It reads some of
    its environment when it is imported, so what this process has read is replaced too. Its own
    retries are switched off, so that all faults are left to us.
    """
    from huggingface_hub import HfFileSystem, constants, hf_file_system

    store = HubStore(folder, faults, **options)
    with pytest.MonkeyPatch.context() as patch:
        found = {"HF_ENDPOINT": store.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        for name, value in {**found, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}.items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", store.url)
        template = store.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("http_backoff", "http_stream_backoff"):
            once = partial(getattr(hf_file_system, name), max_retries=0)
            patch.setattr(hf_file_system, name, once)
        HfFileSystem.clear_instance_cache()
        try:
            yield store, f"hf://datasets/{DATASET}"
        finally:
            HfFileSystem.clear_instance_cache()
            store.close()

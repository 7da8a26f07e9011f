"""What a driver's failure means: whether a file is lost, or its store."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from bertds.errors import DataError, StoreError
from bertds.system import storage
from bertds.system.stored_path import StoredPath
from tests.support.ranks import free_ports
from tests.support.store_server import Answer, Store

pytest.importorskip("aiohttp")


class Refusing(Store):
    """Answers the first requests, of any method, with a status."""

    status, left = 503, 0

    def answer(self, handler: BaseHTTPRequestHandler, name: str, sent: bytes) -> Answer:
        if self.left:
            self.left -= 1
            return Answer(self.status, {"Content-Length": "0"}, b"")
        return super().answer(handler, name, sent)


@pytest.fixture
def store(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    made = Refusing(tmp_path)
    yield made
    made.close()


def test_a_web_server_that_fails_has_not_lost_the_file(store: Refusing) -> None:
    """Its driver asks by HEAD and by GET, and calls the failure of both a lost file."""
    store.left = 2
    assert storage.file_size(f"{store.url}/a.txt") == 4
    assert store.left == 0
    with pytest.raises(FileNotFoundError, match=r"b\.txt: no such file"):
        storage.file_size(f"{store.url}/b.txt")
    assert not StoredPath(f"{store.url}/b.txt").is_file()


def test_a_refusal_of_a_web_server_is_reported_at_once(store: Refusing) -> None:
    store.status, store.left = 403, 2
    with pytest.raises(DataError, match=r"a\.txt: ClientResponseError: 403"):
        storage.file_size(f"{store.url}/a.txt")


def test_a_web_server_that_is_gone_has_not_lost_the_file() -> None:
    (port,) = free_ports(1)
    with pytest.raises(StoreError, match="gave up after 1 tries"):
        storage.file_size(f"http://127.0.0.1:{port}/a.txt", 0.0)

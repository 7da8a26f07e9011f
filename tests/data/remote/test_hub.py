"""A corpus on the Hugging Face Hub, by ``hf://``; what any store does is in test_source.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bertds.data.loader import open_source
from bertds.errors import DataError
from bertds.system import storage
from tests.support.hub_server import hub
from tests.support.store_rows import assert_equal, config, steps
from tests.support.store_server import SECRET, files_of_shards


def test_only_the_needed_files_of_the_hub_are_read_and_no_message_has_the_token(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision of a private dataset, whose shards take several requests each."""
    monkeypatch.setattr(storage, "REQUEST_BYTES", 5000)
    caplog.set_level("INFO", logger="bertds")
    wanted = steps(config(corpus, tmp_path), 3)
    with hub(corpus, ["refuse"]) as (store, url):
        data = config(f"{url}@v1", tmp_path / "cache")
        assert_equal(steps(data, 3), wanted)
        for path in files_of_shards(corpus / "train"):
            assert store.served[path.relative_to(corpus).as_posix()] == path.stat().st_size > 5000
        assert f"{url}@v1" in open_source(data, 1).describe()["path"]
    assert SECRET not in caplog.text and store.injected["refuse"] > 12


def test_a_refusal_of_the_hub_is_reported_at_once_without_the_token(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(url: str) -> str:
        began = time.monotonic()
        with pytest.raises(DataError) as error:
            open_source(config(url, tmp_path), 1).samples_in_epoch(0)
        assert time.monotonic() - began < 10.0  # of the 30 s for which it would be tried again
        assert SECRET not in str(error.value)
        return str(error.value)

    with hub(corpus) as (store, url):
        assert "manifest.json is missing" in message(f"{url}/nothing")
        assert "manifest.json is missing" in message(f"{url}@v2")
        store.refused = "train/shard_00003.h5"
        assert "shard_00003.h5: GatedRepoError: 403 Client Error" in message(url)
    with hub(corpus) as (_, url):
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        assert "A private repository needs `hf auth login` or HF_TOKEN" in message(url)
    with hub(corpus) as (_, url):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "OfflineModeIsEnabled" in message(url)

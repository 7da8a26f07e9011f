"""A corpus in a store gives the rows of the local folder, whatever the store does."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bertds.data.loader import open_source, validation_batches
from bertds.data.order import EpochOrder
from bertds.data.remote import fetch_ahead
from bertds.data.remote.cache import ShardCache
from bertds.data.remote.outlines import outline_bytes
from bertds.errors import BertdsError, ConfigError, DataError, StoreError
from bertds.system import storage
from tests.support.emulators import bucket
from tests.support.store_rows import assert_equal, config, steps
from tests.support.store_server import (
    FAULTS,
    cache_bytes,
    files_of_shards,
    serve,
    serve_by,
)
from tests.support.tiny import write_tiny_data

pytest.importorskip("aiohttp")

GIB = 2**30


def bound(corpus: Path, shards: float) -> float:
    """GiB that hold the lengths and this number of the largest shards."""
    local = open_source(config(corpus, corpus), 1)
    largest = max(info.bytes for info in local._infos)
    return (outline_bytes(local._infos) + shards * largest) / GIB


def whole_epochs(corpus: Path, count: int) -> int:
    local = open_source(config(corpus, corpus), 1)
    return count * local.samples_in_epoch(0) // 64


@pytest.mark.parametrize("kind", ["http", "s3", "hf"])
def test_every_fault_and_a_small_cache_change_no_sample(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Two epochs through a cache of half the corpus; each file suffers every fault."""
    wanted = steps(config(corpus, tmp_path), number := whole_epochs(corpus, 2))
    limit = bound(corpus, 6.2)
    highest = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not stop.is_set():
            if (tmp_path / "cache" / "shards" / "lock").exists():
                highest = max(highest, cache_bytes(tmp_path / "cache"))
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with serve_by(kind, corpus, FAULTS) as (store, url):
            monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the driver leaves all faults to us
            data = config(url, tmp_path / "cache", cache_gib=limit)
            assert_equal(steps(data, number), wanted)
    finally:
        stop.set()
        watcher.join()
    shards = [path.relative_to(corpus).as_posix() for path in files_of_shards(corpus / "train")]
    assert set(store.injected) == set(FAULTS)
    assert all(store.requests[name] > len(FAULTS) for name in shards)
    assert sum(store.served[name] for name in shards) > 1.5 * limit * GIB  # it had to evict
    assert 0.5 * limit * GIB < highest <= limit * GIB


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "az", "gs"])
def test_rows_of_other_stores_are_those_of_the_local_folder(
    corpus: Path, tmp_path: Path, kind: str
) -> None:
    wanted = steps(config(corpus, tmp_path), number := whole_epochs(corpus, 2))
    with bucket(kind, tmp_path / "store") as url:
        for path in sorted(path for path in corpus.rglob("*") if path.is_file()):
            storage.upload(path, f"{url}/{path.relative_to(corpus).as_posix()}")
        data = config(url, tmp_path / "cache", cache_gib=bound(corpus, 6.2))
        assert_equal(steps(data, number), wanted)


def test_processes_that_share_a_cache_fetch_each_block_once(corpus: Path, tmp_path: Path) -> None:
    with serve(corpus) as store:
        data = config(store.url, tmp_path)
        whole = steps(data, 4)
        first = dict(store.served)
        parts = [steps(data, 4, rank, 2) for rank in (0, 1)]
        joined = [[np.concatenate([a[0], b[0]])] for a, b in zip(*parts, strict=True)]
        assert_equal(joined, [[step[0]] for step in whole])
        for path in files_of_shards(corpus / "train"):
            name = path.relative_to(corpus).as_posix()
            assert store.served[name] == first[name] == path.stat().st_size


def test_validation_rows_are_those_of_the_local_folder(corpus: Path, tmp_path: Path) -> None:
    def rows(path: object) -> list[np.ndarray]:
        data = config(path, tmp_path)
        source = open_source(data, 1).held_out()
        return [b.input_ids.numpy() for b in validation_batches(source, 4, 0, 1, seed=1)]

    with serve(corpus, ["refuse", "flip"]) as store:
        for one, two in zip(rows(store.url), rows(corpus), strict=True):
            np.testing.assert_array_equal(one, two)


def test_facts_are_those_of_the_local_folder_except_for_the_path(
    corpus: Path, tmp_path: Path
) -> None:
    with serve(corpus) as store:
        there = open_source(config(store.url, tmp_path), 1).describe()
    here = open_source(config(corpus, tmp_path), 1).describe()
    assert {**there, "path": ""} == {**here, "path": ""}


def test_the_signature_of_a_url_is_sent_to_the_store_but_never_printed(
    corpus: Path, tmp_path: Path, caplog
) -> None:
    with serve(corpus) as store:
        url = f"{store.url}?X-Amz-Signature=topsecret0"
        source = open_source(config(url, tmp_path), 1)
        source.samples_in_epoch(0)
        assert store.queries == {"X-Amz-Signature=topsecret0"}
        assert "topsecret0" not in str(source.describe()) + caplog.text
        with pytest.raises(DataError) as error:
            open_source(config(f"{store.url}/nothing?X-Amz-Signature=topsecret0", tmp_path), 1)
        assert "topsecret0" not in str(error.value) and "manifest.json is missing" in str(
            error.value
        )


def test_a_damaged_copy_in_the_cache_is_fetched_again(corpus: Path, tmp_path: Path) -> None:
    wanted = steps(config(corpus, tmp_path), 3)
    with serve(corpus) as store:
        data = config(store.url, tmp_path / "cache")
        steps(data, 3)
        for path in files_of_shards(tmp_path / "cache" / "shards"):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        assert_equal(steps(data, 3), wanted)


def test_a_cache_that_is_removed_during_a_run_is_filled_again(corpus: Path, tmp_path: Path) -> None:
    """As by a cleaner of the temporary folder: the store has lost nothing."""
    with serve(corpus) as store:
        source = open_source(config(store.url, tmp_path / "cache"), 1)
        source.samples_in_epoch(0)
        shutil.rmtree(tmp_path / "cache")
        rows = source.open_block(0, [1]).gather(np.arange(3))
        assert len(files_of_shards(tmp_path / "cache" / "shards")) >= 1
    local = open_source(config(corpus, tmp_path), 1).open_block(0, [1]).gather(np.arange(3))
    np.testing.assert_array_equal(rows.input_ids, local.input_ids)


def test_a_store_that_holds_other_bytes_is_refused(
    corpus: Path, tmp_path: Path, tiny_vocab: Path
) -> None:
    other = write_tiny_data(tmp_path / "other", tiny_vocab, ends=(5, 30, 60))
    shard = other / "train" / "shard_00001.h5"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with serve(other) as store, pytest.raises(DataError, match=r"shard_00001.h5: damaged on arr"):
        open_source(config(store.url, tmp_path / "cache"), 1).samples_in_epoch(0)
    shard.unlink()
    with (
        serve(other) as store,
        pytest.raises(DataError, match="missing, but listed in the manifest"),
    ):
        open_source(config(store.url, tmp_path / "cache"), 1).samples_in_epoch(0)


def test_a_store_that_does_not_recover_is_reported_and_abandoned(
    corpus: Path, tmp_path: Path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(fetch_ahead, "SAY_AFTER_SECONDS", 0.2)
    with serve(corpus) as store:
        source = open_source(config(store.url, tmp_path, fetch_timeout_minutes=0.02), 1)
        store.down.set()
        caplog.set_level("WARNING", logger="bertds")
        import logging

        logging.getLogger("bertds").addHandler(caplog.handler)
        began = time.monotonic()
        with pytest.raises(StoreError, match=r"shard \d+ of http://.*data.fetch_timeout_min"):
            source.samples_in_epoch(0)
        assert time.monotonic() - began > 1.0
        logging.getLogger("bertds").removeHandler(caplog.handler)
        assert "stalled: waiting for shard" in caplog.text
        store.down.clear()
        assert source.samples_in_epoch(0) > 0  # it continues when the store is back


@pytest.mark.parametrize("fault", ["missing", "other bytes"])
def test_a_shard_that_is_lost_during_training_is_waited_for(
    corpus: Path, tmp_path: Path, fault: str
) -> None:
    """Refused at once before; when the store is repaired, training continues."""
    stored = tmp_path / "stored"
    shutil.copytree(corpus, stored)
    shard = stored / "train/shard_00001.h5"
    good = shard.read_bytes()
    with serve(stored) as store:
        source = open_source(config(store.url, tmp_path / "cache", fetch_timeout_minutes=0.05), 1)
        source.samples_in_epoch(0)
        shutil.rmtree(tmp_path / "cache")
        shard.unlink()
        if fault != "missing":
            shard.write_bytes(good[:-1] + b"x")
        text = "damaged on arrival" if fault != "missing" else "missing, but listed in the manifest"
        with pytest.raises(DataError, match=text):
            source.open_block(0, [1])
        source.wait_for_repair()
        with pytest.raises(StoreError, match=f"did not arrive in .*shard_00001.h5: {text}"):
            source.open_block(0, [1])
        shard.write_bytes(good)
        rows = source.open_block(0, [1]).gather(np.arange(3))
    local = open_source(config(corpus, tmp_path), 1).open_block(0, [1]).gather(np.arange(3))
    np.testing.assert_array_equal(rows.input_ids, local.input_ids)


def test_a_cache_that_cannot_hold_a_block_is_refused(corpus: Path, tmp_path: Path) -> None:
    with serve(corpus) as store:
        with pytest.raises(ConfigError, match=r"data.cache_gib=.* is too small"):
            open_source(config(store.url, tmp_path, cache_gib=1e-6), 1)
        data = config(store.url, tmp_path, cache_gib=bound(corpus, 1.1))
        source = open_source(data, 1)
        block = next(b for b in EpochOrder(source, 1, 0).blocks if len(b) > 1)
        with pytest.raises(ConfigError, match="the shards of one block"):
            source.open_block(0, block)


def threads() -> int:
    return sum(thread.name == "bertds-fetch" for thread in threading.enumerate())


def wait_until_there_are_none() -> None:
    end = time.monotonic() + 60
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert threads() == 0


@pytest.mark.parametrize("place", ["default", "link", "corpora", "shards"])
def test_a_cache_folder_of_another_user_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Its name in /tmp can be foreseen; files there, and links out of it, would be trusted."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # what is made here is another's
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder, elsewhere = tmp_path / f"bertds-cache-{os.geteuid()}", tmp_path / "elsewhere"
    with serve(corpus) as store, pytest.raises(BertdsError, match="belongs to another user"):
        if place == "shards":
            ShardCache(tmp_path / "cache" / "shards", GIB)
        elif place == "corpora":
            open_source(config(store.url, tmp_path), 1)
        else:
            elsewhere.mkdir()
            folder.symlink_to(elsewhere) if place == "link" else folder.mkdir()
            open_source(replace(config(store.url, tmp_path), cache_dir=""), 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_is_reported_before_lengths_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written through a mapping: a write that finds no room would end the process."""

    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = ShardCache(tmp_path / "shards", 1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(BertdsError, match="the disk is full"):
            cache.reserve("outline-1", 1000)
    assert not list(cache.folder.glob("outline-*"))
    os.close(cache.reserve("outline-1", 1000))
    assert os.stat(tmp_path / "shards" / "outline-1").st_blocks >= 2


def test_the_recorded_cache_size_is_corrected_by_a_scan(corpus: Path, tmp_path: Path) -> None:
    """The number of bytes in the lock file is an upper bound: too high or gone does no harm."""
    limit = bound(corpus, 6.2)
    wanted = steps(config(corpus, tmp_path), number := whole_epochs(corpus, 2))
    with serve(corpus) as store:
        data = config(store.url, tmp_path, cache_gib=limit)
        steps(data, 3)
        gc.collect()
        wait_until_there_are_none()
        lock = tmp_path / "shards" / "lock"
        known = int(lock.read_bytes())
        assert known >= cache_bytes(tmp_path)
        for text in (b"%020d\n" % 2**40, b"", b"\0" * 21):
            lock.write_bytes(text)
            assert_equal(steps(data, number), wanted)
            gc.collect()
            wait_until_there_are_none()
            assert known // 2 < cache_bytes(tmp_path) <= int(lock.read_bytes()) <= limit * GIB


def test_a_cache_that_holds_everything_needs_no_threads(corpus: Path, tmp_path: Path) -> None:
    """The threads end when there is nothing to fetch, and when the loader is closed."""

    gc.collect()  # sources of earlier tests
    wait_until_there_are_none()
    with serve(corpus) as store:
        source = open_source(config(store.url, tmp_path), 1)
        source.samples_in_epoch(0)
        source.read_ahead(range(source.shards))
        wait_until_there_are_none()
        held = files_of_shards(tmp_path / "shards")
        assert len(held) == source.shards
        for path in held:
            path.unlink()
        store.down.set()
        source.read_ahead(range(source.shards))
        assert threads() == fetch_ahead.THREADS
        source.stop_waiting()
        store.down.clear()
        wait_until_there_are_none()
        assert len(files_of_shards(tmp_path / "shards")) <= fetch_ahead.THREADS


def test_validation_does_not_stop_fetching_for_training(corpus: Path, tmp_path: Path) -> None:
    with serve(corpus) as store:
        source = open_source(config(store.url, tmp_path), 1)
        held_out = source.held_out()
        source.samples_in_epoch(0)
        for path in files_of_shards(tmp_path / "shards"):
            path.unlink()
        source.read_ahead(range(source.shards))
        held_out.read_ahead([0])
        end = time.monotonic() + 20
        while len(files_of_shards(tmp_path / "shards")) < source.shards + 1:
            assert time.monotonic() < end
            time.sleep(0.01)


FETCH = """
import sys
from bertds.config.recipe import DataConfig
from bertds.data.loader import open_source
data = DataConfig(path=sys.argv[1], cache_dir=sys.argv[2], sequence_length=32,
                  max_predictions_per_sequence=5)
print(open_source(data, 1).samples_in_epoch(0))
"""


@pytest.mark.parametrize("kind", ["http", "s3", "hf"])
def test_kill_9_in_the_middle_of_a_fetch_leaves_nothing_wrong(
    corpus: Path, tmp_path: Path, kind: str
) -> None:
    begun = threading.Event()
    with serve_by(kind, corpus) as (store, url):

        def hold(name: str) -> None:
            if name.endswith("shard_00005.h5"):
                begun.set()
                store.down.set()

        store.hook = hold
        command = [sys.executable, "-c", FETCH, url, str(tmp_path)]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            assert begun.wait(120)
            time.sleep(0.1)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        assert list((tmp_path / "shards").glob(".part-*"))
        store.hook = lambda name: None
        store.down.clear()
        assert_equal(steps(config(url, tmp_path), 3), steps(config(corpus, tmp_path), 3))
        limited = config(url, tmp_path, cache_gib=bound(corpus, 6.2))
        steps(limited, 10)
        assert not list((tmp_path / "shards").glob(".part-*"))


def test_local_paths_do_not_import_the_store_drivers(corpus: Path) -> None:
    code = (
        "import sys\n"
        "from bertds.config.recipe import DataConfig\n"
        "from bertds.data.loader import open_source\n"
        f"open_source(DataConfig(path={str(corpus)!r}), 1).samples_in_epoch(0)\n"
        "print([m for m in ('fsspec', 'aiohttp', 's3fs', 'bertds.data.remote') "
        "if m in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr

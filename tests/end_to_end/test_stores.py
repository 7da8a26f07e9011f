"""Training from a store on loopback: the local run's losses, whatever the store does."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.remote.outlines import outline_bytes
from tests.support.read_runs import assert_same_state, losses, read_lines, saved_steps, train_lines
from tests.support.store_server import FAULTS, cache_bytes, serve
from tests.support.tiny import write_tiny_data

pytest.importorskip("aiohttp")

STEPS = 60
BLOCK = {"block": 300}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_vocab: Path) -> Path:
    """Eight training shards, more than the cache of the tests below holds."""
    folder = tmp_path_factory.mktemp("corpus") / "data"
    return write_tiny_data(folder, tiny_vocab, ends=tuple(range(40, 360, 40)))


def limit(corpus: Path, shards: int) -> int:
    """Bytes of the lengths of both splits, the validation shard and so many training shards."""
    splits = Manifest.load(corpus).splits
    largest = max(info.bytes for info in splits["train"].shards)
    lengths = sum(outline_bytes(split.shards) for split in splits.values())
    return lengths + shards * largest


def on(data: object, words: list[str]) -> list[str]:
    """Return a command with another data.path."""
    return [f"data.path={data}" if word.startswith("data.path=") else word for word in words]


def both(plan: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {0: plan, 1: plan}


def test_two_processes_train_to_the_losses_of_the_local_run(
    fork_server: Any, command: Any, tmp_path: Path, corpus: Path
) -> None:
    more = [f"schedule.total_steps={STEPS}", "validation.every_steps=20"]
    local = on(corpus, command("local", *more))
    code, text = fork_server.run(local, 2, output=tmp_path, plans=both(BLOCK))
    assert code == 0, text

    bound = limit(corpus, 6)
    highest, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not stop.is_set():
            if (tmp_path / "cache" / "shards").is_dir():
                highest = max(highest, cache_bytes(tmp_path / "cache"))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with serve(corpus, FAULTS) as store:
        place = [
            f"data.cache_dir={tmp_path / 'cache'}",
            f"data.cache_gib={bound / 2**30!r}",
        ]
        url = f"{store.url}?X-Amz-Signature=topsecret0"
        stored = on(url, command("stored", *place, *more))
        code, text = fork_server.run(stored, 2, output=tmp_path, plans=both(BLOCK))
    stop.set()
    watcher.join()
    assert code == 0, text
    assert losses(tmp_path / "stored") == losses(tmp_path / "local")
    assert_same_state(tmp_path / "stored", tmp_path / "local")
    scored = [
        [line for line in read_lines(tmp_path / run / "metrics.jsonl") if "split" in line]
        for run in ("stored", "local")
    ]
    assert scored[0] == scored[1]
    assert set(store.injected) == set(FAULTS) and min(store.injected.values()) >= 8
    assert 0.5 * bound < highest <= bound
    for file in (tmp_path / "stored").rglob("*"):
        assert not file.is_file() or b"topsecret0" not in file.read_bytes(), file
    assert "topsecret0" not in text


@pytest.mark.slow
def test_a_store_that_dies_ends_the_run_saved_with_75_and_it_goes_on(
    fork_server: Any, command: Any, tmp_path: Path, corpus: Path
) -> None:
    more = ["schedule.total_steps=90", "checkpoint.every_steps=500"]
    local = on(corpus, command("local", *more))
    code, text = fork_server.run(local, 2, output=tmp_path, plans=both(BLOCK))
    assert code == 0, text
    with serve(corpus) as store:
        place = [
            f"data.cache_dir={tmp_path / 'cache'}",
            f"data.cache_gib={limit(corpus, 5) / 2**30!r}",
            "data.fetch_timeout_minutes=0.05",
        ]
        stored = on(store.url, command("stored", *place, *more))
        trained = threading.Event()

        def kill_when_training(name: str) -> None:
            if (tmp_path / "stored" / "metrics.jsonl").exists() and read_lines(
                tmp_path / "stored" / "metrics.jsonl"
            ):
                store.down.set()
                trained.set()

        store.hook = kill_when_training
        ranks = fork_server.start(stored, 2, output=tmp_path, plans=both(BLOCK | {"slow": 0.02}))
        codes = ranks.wait()
        assert codes == [75, 75], ranks.text(0) + ranks.text(1)
        assert "stalled: shard" in ranks.text(0) and "everything is saved" in ranks.text(0)
        (step,) = saved_steps(tmp_path / "stored")
        assert 0 < step < 90
        assert train_lines(tmp_path / "stored")[-1]["step"] == step
        store.hook = lambda name: None
        store.down.clear()
        code, text = fork_server.run(stored, 2, output=tmp_path, plans=both(BLOCK))
        assert code == 0, text
    assert losses(tmp_path / "stored") == losses(tmp_path / "local")
    assert_same_state(tmp_path / "stored", tmp_path / "local")

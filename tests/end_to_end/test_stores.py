"""Training from a store on loopback: the local run's losses, whatever the store does."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertds.checkpoint.find import step_folders
from bertds.checkpoint.format import CheckpointReader
from bertds.data.formats.manifest import Manifest
from bertds.data.remote.outlines import outline_bytes
from tests.support.fork_server import ForkServer
from tests.support.ranks import free_ports, rank_environment
from tests.support.read_runs import assert_same_state, losses, read_lines, saved_steps, train_lines
from tests.support.store_server import FAULTS, S3_ENVIRONMENT, SECRET, cache_bytes, serve, serve_by
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
    """Bytes of the lengths of both splits, the validation shard and some training shards."""
    splits = Manifest.load(corpus).splits
    largest = max(info.bytes for info in splits["train"].shards)
    lengths = sum(outline_bytes(split.shards) for split in splits.values())
    return lengths + shards * largest


def on(data: object, words: list[str]) -> list[str]:
    """Return a command with another data.path."""
    return [f"data.path={data}" if word.startswith("data.path=") else word for word in words]


def both(plan: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {0: plan, 1: plan}


@pytest.mark.parametrize("kind", ["http", pytest.param("s3", marks=pytest.mark.slow)])
def test_two_processes_train_to_the_losses_of_the_local_run(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    corpus: Path,
    kind: str,
) -> None:
    """Every file suffers every fault; the cache holds six of nine shards."""
    more = [f"schedule.total_steps={STEPS}", "validation.every_steps=20"]
    local = on(corpus, command("local", *more))
    code, text = fork_server.run(local, 2, output=tmp_path, plans=both(BLOCK))
    assert code == 0, text

    bound = limit(corpus, 6)
    highest, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not stop.is_set():
            if (tmp_path / "cache" / "shards" / "lock").exists():
                highest = max(highest, cache_bytes(tmp_path / "cache"))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with serve_by(kind, corpus, FAULTS) as (store, url):
        place = [
            f"data.cache_dir={tmp_path / 'cache'}",
            f"data.cache_gib={bound / 2**30!r}",
        ]
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
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    assert SECRET not in text


@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_whose_store_fails_at_start_stops_the_other(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path, first: int
) -> None:
    """One gives up at once, the other would wait for half an hour."""
    (port,) = free_ports(1)
    words = on(f"http://127.0.0.1:{port}", command("stored", "guard.peer_timeout_seconds=10"))
    plans = {first: {"patience": [0.0, str(tmp_path)]}}
    ranks = fork_server.start(words, 2, output=tmp_path, plans=plans)
    assert ranks.wait() == [75, 75], ranks.text(0) + ranks.text(1)
    assert "manifest.json: ClientConnectorError" in ranks.text(first)
    assert f"rank {first} (process" in ranks.text(1 - first)
    assert "exited with: http://127.0.0.1" in ranks.text(1 - first)
    assert "Traceback" not in ranks.text(0) + ranks.text(1)


@pytest.mark.slow
def test_a_dead_store_of_copies_ends_all_ranks_with_75(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Rank 0 alone asks it, while the others wait."""
    pytest.importorskip("s3fs")
    (port,) = free_ports(1)
    words = command("run", "checkpoint.copy_to=s3://bucket/run", "guard.peer_timeout_seconds=10")
    dead = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "1"}
    ranks = fork_server.start(
        words,
        2,
        output=tmp_path,
        plans={0: {"patience": [0.0, str(tmp_path)]}},
        environment={**S3_ENVIRONMENT, **dead},
    )
    assert ranks.wait() == [75, 75], ranks.text(0) + ranks.text(1)
    assert "s3://bucket/run: EndpointConnectionError" in ranks.text(0)
    assert "exited with: s3://bucket/run" in ranks.text(1)
    assert SECRET not in ranks.text(0) + ranks.text(1)


@pytest.mark.slow
@pytest.mark.parametrize("patience", [0.0, 2.0])
def test_a_store_that_dies_ends_the_run_saved_with_75_and_it_resumes(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    corpus: Path,
    patience: float,
) -> None:
    """Rank 1, which is the first to need a shard, gives up soon; rank 0 would wait half an hour.

    At once, it has still batches to train with, and must not lose those steps.
    """
    more = ["schedule.total_steps=90", "checkpoint.every_steps=500"]
    local = on(corpus, command("local", *more))
    code, text = fork_server.run(local, 2, output=tmp_path, plans=both(BLOCK))
    assert code == 0, text
    with serve(corpus) as store:
        place = [
            f"data.cache_dir={tmp_path / 'cache'}",
            f"data.cache_gib={limit(corpus, 5) / 2**30!r}",
        ]
        stored = on(store.url, command("stored", *place, *more))
        dead = tmp_path / "dead"

        def kill_when_training(name: str) -> None:
            if (tmp_path / "stored" / "metrics.jsonl").exists() and read_lines(
                tmp_path / "stored" / "metrics.jsonl"
            ):
                store.down.set()
                dead.touch()

        store.hook = kill_when_training
        plans = both(BLOCK | {"slow": 0.02})
        plans[1] = plans[1] | {"patience": [patience, str(dead)]}
        ranks = fork_server.start(stored, 2, output=tmp_path, plans=plans)
        codes = ranks.wait()
        assert codes == [75, 75], ranks.text(0) + ranks.text(1)
        assert "stalled: shard" in ranks.text(0) and "everything is saved" in ranks.text(0)
        (step,) = saved_steps(tmp_path / "stored")
        assert 0 < step < 90
        assert train_lines(tmp_path / "stored")[-1]["step"] == step
        store.hook = lambda name: None
        store.down.clear()
        dead.unlink()
        code, text = fork_server.run(stored, 2, output=tmp_path, plans=both(BLOCK))
        assert code == 0, text
    assert losses(tmp_path / "stored") == losses(tmp_path / "local")
    assert_same_state(tmp_path / "stored", tmp_path / "local")


@pytest.mark.slow
def test_a_shard_that_vanishes_during_training_ends_the_run_saved_with_75_and_it_resumes(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path, corpus: Path
) -> None:
    """A start that needs the shard for its first step is refused; after the repair it trains."""
    more = ["schedule.total_steps=90", "checkpoint.every_steps=500"]
    code, text = fork_server.run(
        on(corpus, command("local", *more)), output=tmp_path, plans={0: BLOCK}
    )
    assert code == 0, text
    there, away = tmp_path / "there", tmp_path / "away"
    shutil.copytree(corpus, there)
    with serve(there) as store:
        place = [
            f"data.cache_dir={tmp_path / 'cache'}",
            f"data.cache_gib={limit(corpus, 5) / 2**30!r}",
            "data.fetch_timeout_minutes=0.02",
        ]
        stored = on(store.url, command("stored", *place, *more))

        def lose_when_training(name: str) -> None:
            metrics = tmp_path / "stored" / "metrics.jsonl"
            if not away.exists() and metrics.exists() and read_lines(metrics):
                (there / "train").rename(away)

        store.hook = lose_when_training
        code, text = fork_server.run(stored, output=tmp_path, plans={0: BLOCK | {"slow": 0.02}})
        assert code == 75, text
        assert "missing, but listed in the manifest)); everything is saved" in text
        (step,) = saved_steps(tmp_path / "stored")
        assert 0 < step < 90
        code, text = fork_server.run(stored, output=tmp_path, plans={0: BLOCK})
        assert code == 2 and "missing, but listed in the manifest" in text
        assert saved_steps(tmp_path / "stored") == [step]
        away.rename(there / "train")
        store.hook = lambda name: None
        code, text = fork_server.run(stored, output=tmp_path, plans={0: BLOCK})
        assert code == 0, text
    assert losses(tmp_path / "stored") == losses(tmp_path / "local")
    assert_same_state(tmp_path / "stored", tmp_path / "local")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["train/shard_00003.h5", "validation/shard_00000.h5"])
def test_a_stop_request_is_obeyed_while_a_dead_store_is_waited_for(
    fork_server: ForkServer,
    command: Callable[..., list[str]],
    tmp_path: Path,
    corpus: Path,
    file: str,
) -> None:
    """Before the first step, with 30 minutes left to wait."""
    with serve(corpus) as store:
        reached = threading.Event()

        def die(name: str) -> None:
            if name == file:
                store.down.set()
                reached.set()

        store.hook = die
        place = f"data.cache_dir={tmp_path / 'cache'}"
        words = on(store.url, command("stored", place))
        ranks = fork_server.start(words, 2, output=tmp_path, plans=both(BLOCK))
        assert reached.wait(60), ranks.text(0)
        time.sleep(1.0)
        ranks.signal(1, signal.SIGTERM)
        assert ranks.wait(30) == [75, 75], ranks.text(0) + ranks.text(1)
        assert "SIGTERM" in ranks.text(0)
        assert saved_steps(tmp_path / "stored") == []
        store.hook = lambda name: None
        store.down.clear()
        code, text = fork_server.run(words, 2, output=tmp_path, plans=both(BLOCK))
        assert code == 0, text
    assert train_lines(tmp_path / "stored")[-1]["step"] == 6


TRAIN = """
import sys
from bertds.train import entry
assert entry(sys.argv[1:]) == 0
names = ("fsspec", "aiohttp", "s3fs", "bertds.data.remote")
print("LOADED", [name for name in names if name in sys.modules])
"""


@pytest.mark.slow
def test_training_from_a_local_folder_imports_no_driver(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = command("local", "schedule.total_steps=2", "validation.every_steps=1")
    answer = subprocess.run(
        [sys.executable, "-c", TRAIN, *words],
        env=rank_environment(0, 1, free_ports(1)[0]),
        capture_output=True,
        text=True,
    )
    assert "LOADED []" in answer.stdout, answer.stdout + answer.stderr


def whole_copies(store: Path) -> list[Path]:
    """Return the copies with a marker, newest first."""
    return [folder for folder in step_folders(store) if (folder / "manifest.json").is_file()]


@pytest.mark.slow
def test_a_run_resumes_from_its_copies_when_its_folder_is_gone(
    fork_server: ForkServer, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Killed when two copies are there; nothing local is left; the end is the same."""
    more = ["schedule.total_steps=16", "checkpoint.every_steps=2", "checkpoint.keep_last=2"]
    code, text = fork_server.run(command("local", *more), output=tmp_path)
    assert code == 0, text

    store, run = tmp_path / "store", tmp_path / "run"
    more.append(f"checkpoint.copy_to=file://{store}")
    slow = {0: {"slow": 0.2}}
    ranks = fork_server.start(command("run", *more), output=tmp_path, plans=slow)
    while len(whole_copies(store)) < 2 and ranks.poll() == [None]:
        time.sleep(0.005)
    ranks.signal(0, signal.SIGKILL)
    assert ranks.wait() == [-signal.SIGKILL], ranks.text(0)
    copies = whole_copies(store)
    for folder in copies:
        CheckpointReader(folder)  # compares all checksums
        written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
        assert len(written) > 1 and written["manifest.json"] == max(written.values())
    reached = int(copies[0].name[5:])
    assert 4 <= reached < 16

    shutil.rmtree(run)
    code, text = fork_server.run(command("run", *more, "run.seed=7"), output=tmp_path)
    assert code == 2, text
    assert f"{copies[0].name}: this run started with run.seed=" in text
    assert "restore the value, or choose another checkpoint.copy_to" in text
    assert saved_steps(run) == [] and whole_copies(store) == copies

    words = command("run", *more, "guard.spike_sigmas=50")
    code, text = fork_server.run(words, output=tmp_path)
    assert code == 0, text
    assert f"fetched {copies[0].name} from file://{store}" in text
    assert f"guard.spike_sigmas 0.0 -> 50.0 from step {reached}" in text
    assert [line["step"] for line in train_lines(run)] == list(range(reached + 1, 17))
    assert losses(run) == losses(tmp_path / "local")[reached:]
    assert_same_state(run, tmp_path / "local")
    assert saved_steps(run) == [16, 14]
    # A checkpoint that a newer one supersedes before its turn has no copy.
    kept = [int(folder.name[5:]) for folder in step_folders(store)]
    assert (
        len(kept) == 2 and kept[0] == 16 and kept == [int(f.name[5:]) for f in whole_copies(store)]
    )

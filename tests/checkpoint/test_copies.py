"""Copies of checkpoints in a store: complete or invisible, pruned, found again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bertds.checkpoint import copies as copies_module
from bertds.checkpoint.copies import Copies, listed, restore
from bertds.checkpoint.find import newest_good, step_folders
from bertds.errors import ConfigError, StoreError
from bertds.system import storage
from tests.checkpoint.test_checkpoint import FakeEngine, make, save_steps
from tests.support.emulators import STORES, bucket


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(storage, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(copies_module, "AGAIN_SECONDS", 0.1)


@pytest.fixture(scope="module", params=STORES)
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with bucket(request.param, tmp_path_factory.mktemp("store")) as url:
        yield url


@pytest.fixture
def url(store: str, tmp_path: Path) -> str:
    """A folder for copies in each kind of store."""
    return f"{store}/{tmp_path.name}"


def any_run(url: str, manifest: Mapping[str, Any]) -> None:
    """Accept every copy."""


def steps(url: str) -> list[int]:
    return [int(name[5:]) for name, files in listed(url).items() if "manifest.json" in files]


def test_copies_are_kept_by_the_same_rules_and_restore_the_run(url: str, tmp_path: Path) -> None:
    run = make(tmp_path / "one", copy_to=url, keep_last=2, milestone_steps=3)
    (tmp_path / "one").mkdir()
    for step in (1, 2, 3, 4, 5, 6):
        save_steps(run, step)
        run.wait_copied(30)
    assert steps(url) == [6, 5, 3]
    assert [int(f.name[5:]) for f in step_folders(tmp_path / "one" / "checkpoints")] == [6, 5, 3]
    elsewhere = tmp_path / "two" / "checkpoints"
    restore(url, elsewhere, 5, any_run)
    reader = newest_good(elsewhere)
    assert reader is not None and reader.manifest["step"] == 6
    assert (elsewhere / "latest").read_text() == "step_00000006\n"
    for file in (tmp_path / "one" / "checkpoints" / "step_00000006").iterdir():
        assert (elsewhere / "step_00000006" / file.name).read_bytes() == file.read_bytes()


def test_the_newest_good_checkpoint_is_used_wherever_it_is(url: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    run = make(tmp_path / "one", copy_to=url)
    save_steps(run, 4, 5)
    run.wait_copied(30)
    here = tmp_path / "one" / "checkpoints"
    damaged = here / "step_00000005" / "rank_00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"oops")
    restore(url, here, 5, any_run)  # the local one is damaged
    assert newest_good(here).manifest["step"] == 5  # type: ignore[union-attr]
    shutil.copytree(here / "step_00000005", tmp_path / "kept")
    save_steps(make(tmp_path / "one"), 6)
    restore(url, here, 5, any_run)  # the local one is newer
    assert newest_good(here).manifest["step"] == 6  # type: ignore[union-attr]
    store, name = storage.open_store(storage.join(url, "step_00000005/rank_00000.safetensors"))
    store.pipe_file(
        name, damaged.read_bytes()[:-4] + b"oops"
    )  # the copy is damaged: the one before
    shutil.rmtree(here)
    here.mkdir()
    restore(url, here, 5, any_run)
    assert newest_good(here).manifest["step"] == 4  # type: ignore[union-attr]


def test_a_copy_under_the_name_of_another_step_is_skipped(url: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    run = make(tmp_path / "one", copy_to=url)
    save_steps(run, 4, 5)
    run.wait_copied(30)
    five = tmp_path / "one" / "checkpoints" / "step_00000005"
    for file in five.iterdir():  # a newer name, and names that are none
        for name in ("step_00000009", f"step_{'9' * 200}", "step_\u0661\u0662345678"):
            storage.upload(file, storage.join(url, f"{name}/{file.name}"))
    assert list(listed(url)) == ["step_00000009", "step_00000005", "step_00000004"]
    restore(url, tmp_path / "two" / "checkpoints", 5, any_run)
    [fetched] = step_folders(tmp_path / "two" / "checkpoints")
    assert fetched.name == "step_00000005"


def test_a_copy_of_what_is_here_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path / 'store'}"
    (tmp_path / "one").mkdir()
    run = make(tmp_path / "one", copy_to=url)
    save_steps(run, 4)
    run.wait_copied(30)
    monkeypatch.delattr(storage, "download")
    restore(url, tmp_path / "one" / "checkpoints", 5, any_run)


def test_a_copy_that_replaces_another_runs_is_incomplete_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the other run's manifest would describe files of both."""
    url, real = f"file://{tmp_path / 'store'}", storage.upload
    for seed, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        save_steps(make(tmp_path / name, FakeEngine(seed)), 4)
    one, two = (tmp_path / name / "checkpoints" / "step_00000004" for name in ("one", "two"))
    copies = Copies(url, lambda steps: [])
    copies.add(one)
    copies.wait(30)
    there: list[list[int]] = []

    def upload(path: Path, target: str, **more: object) -> None:
        there.append(steps(url))
        real(path, target, **more)

    monkeypatch.setattr(storage, "upload", upload)
    copies.add(two)
    copies.wait(30)
    assert there == [[], []] and steps(url) == [4]


def test_a_store_that_lists_too_little_loses_no_new_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing may be older than the last upload."""
    url = f"file://{tmp_path / 'store'}"
    (tmp_path / "one").mkdir()
    old = {"step_00000004": ["rank_00000.safetensors"]}
    monkeypatch.setattr(copies_module, "listed", lambda *_: old)
    run = make(tmp_path / "one", copy_to=url)
    save_steps(run, 4)
    run.wait_copied(30)
    assert sorted(listed(url)["step_00000004"]) == ["manifest.json", "rank_00000.safetensors"]


def test_a_copy_without_its_manifest_is_invisible_and_removed_later(
    url: str, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    run = make(tmp_path / "one", copy_to=url)
    save_steps(run, 4)
    run.wait_copied(30)
    half = storage.join(url, "step_00000007/rank_00000.safetensors")
    storage.upload(tmp_path / "one" / "checkpoints" / "latest", half)
    restore(url, tmp_path / "two" / "checkpoints", 5, any_run)
    assert newest_good(tmp_path / "two" / "checkpoints").manifest["step"] == 4  # type: ignore[union-attr]
    save_steps(run, 5)
    run.wait_copied(30)
    assert set(listed(url)) == {"step_00000005", "step_00000004"}


def test_an_interrupted_upload_is_repeated_at_the_next_start(url: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    save_steps(make(tmp_path / "one"), 4)
    run = make(tmp_path / "one", copy_to=url)
    run.copies.catch_up(tmp_path / "one" / "checkpoints")  # type: ignore[union-attr]
    run.wait_copied(30)
    assert steps(url) == [4]


def test_a_checkpoint_stays_while_it_is_uploaded_and_a_store_that_is_down_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path / 'store'}"
    (tmp_path / "one").mkdir()
    run = make(tmp_path / "one", copy_to=url, keep_last=1)
    open_ = threading.Event()
    real, failures = storage.upload, []

    def upload(path: Path, there: str, **more: Any) -> None:
        assert open_.wait(20)
        if len(failures) < 2:
            failures.append(there)
            raise StoreError(f"{there}?X-Amz-Signature=topsecret0: down")
        real(path, there, **more)

    monkeypatch.setattr(storage, "upload", upload)
    save_steps(run, 1)
    while run.copies._current is None:  # type: ignore[union-attr]
        time.sleep(0.01)
    save_steps(run, 2, 3)
    names = [folder.name for folder in step_folders(tmp_path / "one" / "checkpoints")]
    assert names == ["step_00000003", "step_00000001"]  # 2 waited, and no rule keeps it
    with pytest.raises(StoreError, match=r"step_00000001, step_00000003 not uploaded yet"):
        run.wait_copied(0.1)
    open_.set()
    run.wait_copied(30)
    assert steps(url) == [3] and len(failures) == 2
    names = [folder.name for folder in step_folders(tmp_path / "one" / "checkpoints")]
    assert names == ["step_00000003"]


def test_a_copy_of_another_run_ends_the_start_even_if_it_is_not_needed(
    url: str, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    run = make(tmp_path / "one", copy_to=url)
    save_steps(run, 4)
    run.wait_copied(30)
    seen = []

    def refuse(there: str, manifest: Mapping[str, Any]) -> None:
        seen.append((there, manifest["step"]))
        raise ConfigError("of another run")

    for here in (tmp_path / "one" / "checkpoints", tmp_path / "two" / "checkpoints"):
        before = sorted(path.name for path in here.glob("*"))
        with pytest.raises(ConfigError, match="of another run"):
            restore(url, here, 5, refuse)
        assert sorted(path.name for path in here.glob("*")) == before
    assert seen == [(f"{url}/step_00000004", 4)] * 2 and steps(url) == [4]


UPLOAD = """
import sys, time
from pathlib import Path
from bertds.checkpoint.copies import Copies
from bertds.system import storage
real = storage.upload
def upload(path, url, **more):
    if path.name == "manifest.json":
        print("manifest", flush=True)
        time.sleep(60)
    real(path, url, **more)
storage.upload = upload
copies = Copies(sys.argv[1], lambda steps: [])
copies.add(Path(sys.argv[2]))
copies.wait(60)
"""


def test_kill_9_in_the_middle_of_an_upload_leaves_nothing_that_looks_complete(
    url: str, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    save_steps(make(tmp_path / "one"), 4, 5)
    folders = step_folders(tmp_path / "one" / "checkpoints")
    first = Copies(url, lambda steps: [])
    first.add(folders[1])
    first.wait(30)
    child = subprocess.Popen(
        [sys.executable, "-c", UPLOAD, url, str(folders[0])], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "manifest\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert set(listed(url)) == {"step_00000005", "step_00000004"} and steps(url) == [4]
    restore(url, tmp_path / "two" / "checkpoints", 5, any_run)
    assert newest_good(tmp_path / "two" / "checkpoints").manifest["step"] == 4  # type: ignore[union-attr]
    again = Copies(url, lambda steps: [])
    again.catch_up(tmp_path / "one" / "checkpoints")
    again.wait(30)
    assert steps(url) == [5, 4]

"""Tasks that begin in any window of the end of a preparation, into a folder and into a store."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.errors import StoreError
from bertds.system import storage
from bertds.system.fault_points import injected
from data_prep.build_wiki_books import main
from data_prep.workers.joint_lock import Claims, JointLock
from tests.support.fault_injection import Killed

END = ("prep.report", "prep.manifest", "prep.finished", "prep.done")
"""The windows of the end, in their order."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, made: SimpleNamespace) -> Path:
    """Files of text; each is a unit."""
    rng = random.Random(5)
    folder = tmp_path_factory.mktemp("texts")
    for number in range(2):
        documents = [made.article(rng).replace("\n\n", "\n") for _ in range(6)]
        (folder / f"{number}.txt").write_text("\n\n".join(documents))
    return folder


def command(texts: Path, out: object, *more: str) -> list[str]:
    """Every stage that reads what an earlier one has written."""
    settings = "--train-vocab 300 --dedup minhash --validation-fraction 0.2 --workers 1"
    return ["--text", str(texts), "--out", str(out), *settings.split(), *more]


def task(index: int) -> list[str]:
    return ["--task-count", "3", "--task-index", str(index)]


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, texts: Path, made: SimpleNamespace
) -> dict[str, str]:
    out = tmp_path_factory.mktemp("alone") / "out"
    assert main(command(texts, out)) == 0
    return made.tree(out)


def another_task(out: Path, index: int = 2) -> JointLock:
    """Let one more task join those that are in the folder now."""
    return JointLock(out, json.loads((out / ".lock").read_text())["group"], index, 3).acquire()


def test_a_task_that_joins_when_all_is_done_has_nothing_left_to_do(
    tmp_path: Path, texts: Path, alone: dict[str, str], made: SimpleNamespace
) -> None:
    """Another task keeps the session alive: no other task has seen the manifest yet."""
    out = tmp_path / "out"
    others: list[JointLock] = []
    with injected("prep.done", lambda: others.append(another_task(out))):
        assert main(command(texts, out, *task(0))) == 0
    assert not (out / ".work").exists() and (out / ".tasks").exists()
    assert main(command(texts, out, *task(1))) == 0
    others[0].release()
    assert made.tree(out) == alone


@pytest.mark.parametrize(("point", "given"), zip(END, 2 * ([], ["--overwrite"])))
def test_killed_in_any_window_of_the_end_a_late_task_finishes(
    tmp_path: Path,
    texts: Path,
    alone: dict[str, str],
    made: SimpleNamespace,
    point: str,
    given: list[str],
) -> None:
    out = tmp_path / "out"
    with injected(point, kill), pytest.raises(Killed):
        main(command(texts, out, *given, *task(0)))
    assert (out / "manifest.json").exists() == (point in END[2:])
    assert main(command(texts, out, *given, *task(1))) == 0
    assert made.tree(out) == alone


def kill() -> None:
    raise Killed


def test_a_task_that_joins_while_the_last_one_leaves_keeps_its_place(tmp_path: Path) -> None:
    last = JointLock(tmp_path, "g", 0, 3).acquire()
    (last.tasks / "member-2.json").write_text(json.dumps({"host": "gone", "pid": 1}))
    (last.tasks / "session-of-the-dead").mkdir()
    joined: list[JointLock] = []
    with injected("tasks.leave", lambda: joined.append(JointLock(tmp_path, "g", 1, 3).acquire())):
        dead = time.time() - 1000
        os.utime(last.tasks / "member-2.json", (dead, dead))
        last.release()
    (other,) = joined
    assert other.member.exists() and other.session != last.session
    claims = Claims(other)
    assert claims.take("a") and claims.names() == {"a.claim"}
    assert {path.name for path in other.tasks.iterdir()} == {other.member.name, other.session}
    other.release()
    assert list(tmp_path.iterdir()) == []


# Into a store.


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return f"file://{tmp_path / 'store'}"


def tree(made: SimpleNamespace, url: str) -> dict[str, str]:
    return made.tree(Path(url.removeprefix("file://")))


def test_the_first_task_is_late_while_the_others_replace_the_result(
    tmp_path: Path, texts: Path, alone: dict[str, str], made: SimpleNamespace, url: str
) -> None:
    """What is replaced looks complete at no time, and what the others write is not removed."""
    work = ["--work-dir", str(tmp_path / "work"), "--overwrite"]
    assert main(command(texts, url, "--seed", "7")) == 0
    codes: list[int] = []
    threads: list[threading.Thread] = []

    def first_task() -> None:
        codes.append(main(command(texts, url, *work, *task(0))))

    def late() -> None:
        assert not storage.list_files(url).get("manifest.json")
        threads.append(threading.Thread(target=first_task))
        threads[0].start()
        wait_for(lambda: bool(codes) or (tmp_path / "work/.tasks/member-0.json").exists())

    with injected("prep.report", late):
        assert main(command(texts, url, *work, *task(1))) == 0
    threads[0].join(60)
    assert codes == [0] and tree(made, url) == alone
    assert main(command(texts, url, *work, *task(2))) == 0
    assert tree(made, url) == alone


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("point", ["prep.manifest", "prep.finished"])
def test_killed_in_any_window_of_the_end_the_store_gets_the_rest(
    tmp_path: Path,
    texts: Path,
    alone: dict[str, str],
    made: SimpleNamespace,
    url: str,
    point: str,
) -> None:
    work = tmp_path / "work"
    given = command(texts, url, "--work-dir", str(work))
    with injected(point, kill), pytest.raises(Killed):
        main(given)
    assert main(given) == 0
    assert tree(made, url) == alone and not work.exists()


def test_a_manifest_whose_upload_failed_is_uploaded_later(
    texts: Path,
    alone: dict[str, str],
    made: SimpleNamespace,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def upload(path: Path, there: str) -> None:
        raise StoreError(f"{there}: down")

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.store_output.storage.upload", upload)
        with pytest.raises(StoreError):
            main(command(texts, url))
    assert "manifest.json" not in tree(made, url)
    assert main(command(texts, url)) == 0
    assert tree(made, url) == alone


def test_a_work_folder_of_several_tasks_serves_another_url(
    tmp_path: Path, texts: Path, alone: dict[str, str], made: SimpleNamespace, url: str
) -> None:
    work = ["--work-dir", str(tmp_path / "work"), *task(1)]
    assert main(command(texts, url, *work)) == 0
    assert main(command(texts, f"{url}2", *work)) == 0
    assert tree(made, url) == tree(made, f"{url}2") == alone


def test_a_work_folder_keeps_what_preparation_has_not_written(
    tmp_path: Path, texts: Path, alone: dict[str, str], made: SimpleNamespace, url: str
) -> None:
    assert main(command(texts, url)) == 0
    mine = tmp_path / "mine"
    assert main(command(texts, mine, "--seed", "7")) == 0
    (mine / "thesis.tex").write_text("years of work")
    before = made.tree(mine)
    assert main(command(texts, url, "--work-dir", str(mine))) == 0
    assert made.tree(mine) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/.diary").touch()
    assert main(command(texts, f"{url}2", "--work-dir", str(tmp_path / "notes"))) == 0
    assert list((tmp_path / "notes").iterdir()) == [tmp_path / "notes/.diary"]

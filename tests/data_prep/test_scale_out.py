from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.errors import BertdsError, ConfigError, InUseError
from bertds.system.folder_lock import FolderLock, living_holder
from bertds.system.run_command import guarded
from data_prep.build_wiki_books import main
from data_prep.launch import array_element, run_part, without_own_options
from data_prep.stages import unit_groups
from data_prep.workers.joint_lock import Claims, JointLock
from data_prep.workers.pool import Workers
from data_prep.workers.team import Group, SharedFolderTeam
from tests.support.prep_options import WITH_ROWS, wiki_options

# Small groups, so that all tasks have something to do. With a number in the environment: end this
# process by SIGKILL in the middle of its work, after this number of markers.
TASK = """
import os, signal, sys
from bertds.system.run_command import guarded
from data_prep.stages import instances, markers, shuffle, tokenise, unit_groups
from data_prep.build_wiki_books import main
unit_groups.LARGEST_GROUP = 1
left = int(os.environ.get("DIE_AFTER", "1000000"))
def marker(*arguments):
    global left
    result = markers.write_marker(*arguments)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
for stage in (instances, shuffle, tokenise):
    stage.write_marker = marker
raise SystemExit(guarded(main))
"""


arguments = partial(wiki_options, settings=WITH_ROWS)


@pytest.fixture(scope="module")
def wiki(tmp_path_factory: pytest.TempPathFactory, made: SimpleNamespace) -> Path:
    """Plain dumps, and one that a single process must read."""
    rng = random.Random(12)
    folder = tmp_path_factory.mktemp("dumps")
    for number in range(8):
        pages = [made.page(f"P{number} {i}", made.article(rng)) for i in range(12)]
        data = made.dump(pages)
        name, data = (f"{number}.xml", data) if number else ("0.bz2", made.multistream(data, 1))
        (folder / name).write_bytes(data)
    return folder


def start(
    out: Path, wiki: Path, vocab: Path, repository: Path, index: int, die_after: int = 0
) -> subprocess.Popen[str]:
    variables = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    if die_after:
        variables["DIE_AFTER"] = str(die_after)
    task = ["--task-count", "3", "--task-index", str(index)]
    return subprocess.Popen(
        [sys.executable, "-c", TASK, *arguments(out, wiki, vocab, *task)],
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_three_tasks_one_killed_give_the_bytes_of_one_process(
    tmp_path: Path, wiki: Path, vocab: Path, made: SimpleNamespace, repository: Path
) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    killed = start(out, wiki, vocab, repository, 1, 3)
    said = [killed.communicate(timeout=120)[1]]  # on a busy machine the others would do its work
    assert killed.returncode == -signal.SIGKILL, said
    tasks = [start(out, wiki, vocab, repository, index) for index in (0, 2)]
    assert main(arguments(alone, wiki, vocab)) == 0
    said = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert made.tree(out) == made.tree(alone)  # no lock, claim or marker is left either
    assert main(arguments(out, wiki, vocab, "--task-count", "3", "--task-index", "1")) == 0
    assert made.tree(out) == made.tree(alone)


@pytest.mark.slow
def test_all_tasks_killed_and_started_again(
    tmp_path: Path, wiki: Path, vocab: Path, made: SimpleNamespace, repository: Path
) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    task = start(out, wiki, vocab, repository, 1, 9)  # in the second stage
    said = task.communicate(timeout=120)[1]
    assert task.returncode == -signal.SIGKILL, said
    assert list((out / ".tasks").glob("member-*")) and not (out / "manifest.json").exists()
    part = next((out / ".work" / "tokens").glob("*.part"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")  # damaged while nobody was there
    shutil.copytree(out, tmp_path / "copy")
    # Without the others, and with another one than the one that died: nothing waits for them.
    assert main(arguments(out, wiki, vocab, "--task-count", "3", "--task-index", "2")) == 0
    assert main(arguments(alone, wiki, vocab)) == 0
    assert made.tree(out) == made.tree(alone)
    assert (
        main(arguments(tmp_path / "copy", wiki, vocab)) == 0
    )  # a process on its own continues too
    assert made.tree(tmp_path / "copy") == made.tree(alone)


def test_a_trained_vocabulary_is_trained_once(
    tmp_path: Path, wiki: Path, made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(out: Path, *more: str) -> None:
        given = ["--wiki", str(wiki / "1.xml"), "--out", str(out), "--train-vocab", "300"]
        given += ["--validation-fraction", "0.2", "--workers", "1", *more]
        assert main(given) == 0

    monkeypatch.setattr(unit_groups, "LARGEST_GROUP", 1)
    prepare(tmp_path / "alone")
    prepare(tmp_path / "joint", "--task-count", "2", "--task-index", "1")
    assert made.tree(tmp_path / "joint") == made.tree(tmp_path / "alone")


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert guarded(main, argv) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("bertds: error")]
    return line


def test_a_foreign_run_is_refused_while_a_task_lives(
    tmp_path: Path, wiki: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    one_of_three = ["--task-count", "3", "--task-index"]
    with JointLock(out, "some other preparation", 0, 3):
        said = f"{out}: in use by preparation, task 0 of 3 (process {os.getpid()} on "
        assert said in fails(arguments(out, wiki, vocab), capsys)
        assert said in fails(arguments(out, wiki, vocab, *one_of_three, "1"), capsys)
        assert said in fails(arguments(out, wiki, vocab, *one_of_three, "0"), capsys)
        with pytest.raises(InUseError):
            JointLock(out, "some other preparation", 0, 3).acquire()  # this number runs already
        assert [p.name for p in (out / ".tasks").glob("member-*")] == ["member-0.json"]
    with FolderLock(out, "preparation"):
        said = "in use by preparation (process"
        assert said in fails(arguments(out, wiki, vocab, *one_of_three, "1"), capsys)
    assert list(out.iterdir()) == []


def elsewhere(lock: JointLock, seconds_ago: float) -> None:
    """Make a member one of another host, seen last so long ago."""
    member = json.loads(lock.member.read_text()) | {"host": "elsewhere", "pid": 1}
    lock.ended.set()  # no more signs of life
    lock.member.write_text(json.dumps(member))
    os.utime(lock.member, (time.time() - seconds_ago,) * 2)


def test_tasks_of_other_hosts_count_as_alive_while_their_files_are_touched(tmp_path: Path) -> None:
    first = JointLock(tmp_path, "g", 0, 2).acquire()
    elsewhere(first, 5)
    with pytest.raises(InUseError, match="on elsewhere"):
        FolderLock(tmp_path, "another").acquire()
    with JointLock(tmp_path, "g", 1, 2) as second:
        assert second.session == first.session
        claims = Claims(second, patience_seconds=0.2)
        other = Claims(first)
        assert other.take("a")
        assert not claims.take("a")
        time.sleep(0.1)
        os.utime(first.member)
        time.sleep(0.15)
        assert not claims.take("a")  # it has given a sign of life in between
        time.sleep(0.25)
        assert claims.take("a")
    elsewhere(first, 1000)
    touched = first.member.stat().st_mtime  # now, by the clock of a file server that is behind
    assert living_holder(first.member, 120.0, now=touched + 5) is not None
    assert living_holder(first.member, 120.0) is None
    with FolderLock(tmp_path, "another"):
        pass


def test_a_requeued_task_takes_its_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    before = JointLock(tmp_path, "g", 0, 2).acquire()
    assert Claims(before).take("a")
    elsewhere(before, 1)
    with JointLock(tmp_path, "g", 0, 2) as now:  # same job, another node
        assert Claims(now).take("a")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    before = JointLock(tmp_path, "g", 0, 2).acquire()
    elsewhere(before, 1)
    monkeypatch.setenv("SLURM_JOB_ID", "79")
    with pytest.raises(InUseError, match="Slurm job 78"):
        JointLock(tmp_path, "g", 0, 2).acquire()


def test_many_that_start_at_once_agree_on_one_session(tmp_path: Path, repository: Path) -> None:
    """Where a killed run has left its lock: all find it dead at the same moment."""
    code = """
import json, os, sys, time
from pathlib import Path
from data_prep.workers.joint_lock import JointLock
out = Path(sys.argv[1])
for turn in range(8):
    folder = out / str(turn)
    folder.mkdir()
    (folder / ".lock").write_text(json.dumps({"group": "g", "session": "dead"}))
    begin = time.monotonic() + 0.03
    children = []
    for index in range(6):
        child = os.fork()
        if child == 0:
            while time.monotonic() < begin:
                pass
            lock = JointLock(folder, "g", index, 6).acquire()
            (folder / f"session-{index}").write_text(lock.session)
            while len(list(folder.glob("session-*"))) < 6:
                time.sleep(0.01)
            lock.release()
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    found = {p.read_text() for p in folder.glob("session-*")}
    assert len(found) == 1 and found != {"dead"}, (turn, found)
    assert not (folder / ".lock").exists() and not (folder / ".tasks").exists()
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )


def test_a_failure_leaves_the_work_to_the_others(tmp_path: Path) -> None:
    lock = JointLock(tmp_path, "g", 0, 2)
    with pytest.raises(ZeroDivisionError), lock, Workers(1) as workers:
        SharedFolderTeam(workers, lock).once("a", lambda: 1 // 0)
    with JointLock(tmp_path, "g", 1, 2) as lock, Workers(1) as workers:
        team = SharedFolderTeam(workers, lock)
        assert team.once("a", lambda: {"x": (1, 2)}) == {"x": [1, 2]}
        assert team.once("a", lambda: 1 // 0) == {"x": [1, 2]}
        told: list[dict[str, int]] = []
        groups = [
            Group(str(n), lambda n=n: [SimpleNamespace(n=n, earlier=lambda: None)])
            for n in range(5)
        ]
        team.each("s", lambda task: {"n": task.n}, groups, told.append)
        assert sorted(result["n"] for result in told) == [0, 1, 2, 3, 4]
        for file in lock.session_folder.iterdir():
            file.unlink()
        lock.session_folder.rmdir()
        with pytest.raises(BertdsError, match="run this task again"):
            team.once("b", dict)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--task-count 3 --task-index 3", "--task-index 3: allowed: 0 to 2"),
        ("--task-index 1", "--task-index requires --task-count"),
        ("--task-count 0", "--task-count 0: allowed: 1 or more"),
        ("--executor slurm", "--executor slurm requires --task-count"),
        ("--executor ray --task-count 1", "--executor ray requires --task-count"),
    ],
)
def test_impossible_tasks(
    tmp_path: Path,
    wiki: Path,
    vocab: Path,
    capsys: pytest.CaptureFixture[str],
    options: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    assert message in fails([*arguments(tmp_path / "o", wiki, vocab), *options.split()], capsys)
    assert not (tmp_path / "o").exists()


def test_the_slurm_executor_submits_an_array_of_the_same_command(
    tmp_path: Path,
    wiki: Path,
    vocab: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    given = arguments(tmp_path / "o", wiki, vocab)
    command = ["--executor=slurm", *given, "--task-count", "16"]
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\nfor a in "$@"; do echo "$a"; done > {tmp_path}/asked\necho 99\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    assert main(command) == 0
    script = str(repository / "slurm" / "data_prep.sh")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["--parsable", "--array=0-15", script, *given]
    assert "scancel 99" in capsys.readouterr().err
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    assert "invalid partition" in fails(command, capsys)
    assert not (tmp_path / "o").exists()


def test_an_element_of_an_array_is_one_task() -> None:
    names = ("ID", "MIN", "STEP", "COUNT")
    for values, expected in (((0, 0, 1, 16), (0, 16)), ((11, 1, 5, 4), (2, 4))):
        environment = {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(names, values)}
        assert array_element(environment) == expected
    with pytest.raises(
        ConfigError, match="SLURM_ARRAY_TASK_ID is 'abc'; it must be a whole number"
    ):
        array_element({"SLURM_ARRAY_TASK_ID": "abc"})
    assert without_own_options(["--wiki", "a", "--executor", "ray", "--task-count=3", "--x"]) == [
        "--wiki",
        "a",
        "--x",
    ]


@pytest.mark.slow
def test_ray_tasks_give_the_bytes_of_one_process(
    tmp_path: Path,
    wiki: Path,
    vocab: Path,
    made: SimpleNamespace,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert main(arguments(alone, wiki, vocab)) == 0
    command = [
        sys.executable,
        str(repository / "data_prep" / "build_wiki_books.py"),
        "--executor",
        "ray",
        "--task-count",
        "2",
        *arguments(out, wiki, vocab),
    ]
    subprocess.run(command, check=True, timeout=240, cwd=tmp_path)
    assert made.tree(out) == made.tree(alone)
    (out / "manifest.json").unlink()
    # What a Ray process calls; it hands code and error to the one that waits.
    monkeypatch.chdir(tmp_path)
    part = ["--task-count", "2", "--task-index", "0"]
    code, error = run_part([*arguments(out, wiki, vocab), *part], str(tmp_path))
    assert code == 2 and "but no manifest.json; choose an empty folder" in error, error

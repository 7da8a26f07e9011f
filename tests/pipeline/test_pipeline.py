"""Ctrl-C while the pipeline trains: the run saves and ends, and nobody sees an error report."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from bertds.commands.pipeline import main
from bertds.errors import DataError
from bertds.pipeline.launch import wait_for
from data_prep import build_wiki_books


def launch(script: str, run: Path) -> subprocess.Popen[Any]:
    """Start what stands for the launcher: a shell with a child, in a session of its own."""
    return subprocess.Popen(["sh", "-c", script], cwd=run.parent, start_new_session=True)


def send_later(*signals: int) -> None:
    for count, number in enumerate(signals, start=1):
        threading.Timer(0.3 * count, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("code", [75, 0])
def test_a_wish_to_stop_reaches_the_run_as_a_file(tmp_path: Path, number: int, code: int) -> None:
    run, before = tmp_path / "run", signal.getsignal(number)
    launcher = launch(f"until [ -e run/STOP ]; do sleep 0.05; done; exit {code}", run)
    send_later(number)
    assert wait_for(launcher, run) == 75  # 0 too: a phase that ended is not followed by the next
    assert not (run / "STOP").exists()  # the same command goes on
    assert signal.getsignal(number) == before


def test_a_second_interrupt_leaves_no_process_behind(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = launch("sleep 60 & wait", run)
    send_later(signal.SIGINT, signal.SIGINT)
    assert wait_for(launcher, run) == 130
    with pytest.raises(ProcessLookupError):
        for _ in range(200):
            os.killpg(launcher.pid, 0)
            threading.Event().wait(0.02)
    assert not (run / "STOP").exists()


def test_without_a_wish_the_code_is_the_launchers(tmp_path: Path) -> None:
    assert [wait_for(launch(f"exit {code}", tmp_path / "run"), tmp_path) for code in (0, 2)] == [
        0,
        2,
    ]


def test_another_corpus_in_the_same_folder_is_refused_in_the_pipelines_words(
    tmp_path: Path,
) -> None:
    books = tmp_path / "books"
    books.mkdir()
    (books / "one.txt").write_text("A line of one. And of two.\n\n" * 40)
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nline\n")
    work = tmp_path / "work"
    command = ["--books", str(books), "--vocab", str(vocab)]
    prepare = [*command, "--out", str(work / "data"), "--validation-fraction", "0"]
    assert build_wiki_books.main(prepare) == 0
    with pytest.raises(DataError, match=r"0\.05 now.*choose another --work DIR") as refusal:
        main(["--work", str(work), *command])
    assert "--overwrite" not in str(refusal.value)

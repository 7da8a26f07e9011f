"""A stop signal before a command can save: one line, the signal's code, at once."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
import weakref

import pytest

from bertds.system.early_stop import armed, disarm
from bertds.system.run_command import guarded
from tests.support.ranks import REPOSITORY

HANGS = """
import ctypes, os, signal, sys
from bertds.system.early_stop import armed, disarm, on_early_stop

signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as a batch script does
with armed():
    on_early_stop(lambda reason, code: os.write(2, f"callback {code}\\n".encode()))
    if sys.argv[2] == "disarmed":
        disarm()
    os.kill(os.getpid(), signal.SIGUSR1)
    mutex = (ctypes.c_char * 64)()
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    child = os.fork()
    if child == 0:
        os.kill(os.getppid(), int(sys.argv[1]))
        os._exit(0)
    lock(mutex)  # for ever, and no handler of Python's runs
"""


def hang(number: int, state: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HANGS, str(int(number)), state],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_even_a_call_in_which_python_does_not_run(number: signal.Signals) -> None:
    found = hang(number, "armed")
    assert found.returncode == 128 + number
    assert found.stderr == (
        f"bertds: stopped by {number.name} before training began; run the same command again\n"
        f"callback {128 + number}\n"
    )


def test_once_disarmed_signals_do_what_they_did_before() -> None:
    found = hang(signal.SIGTERM, "disarmed")
    assert (found.returncode, found.stderr) == (-signal.SIGTERM, "")


def test_handlers_are_restored_and_others_are_left_alone() -> None:
    mine, taken = (lambda *_: None), (lambda *_: None)
    signal.signal(signal.SIGTERM, mine)
    interrupt = signal.getsignal(signal.SIGINT)
    usual = signal.getsignal(signal.SIGUSR1)
    with armed():
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is not interrupt
        signal.signal(signal.SIGUSR1, taken)
        disarm()
        assert signal.getsignal(signal.SIGINT) is interrupt
        assert signal.getsignal(signal.SIGUSR1) is taken
    assert usual is not taken
    assert signal.set_wakeup_fd(-1) == -1


SLOW_IMPORT = """
import sys, types
import bertds.cli as cli

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "bertds.commands.models":
            import os, signal, time
            os.kill(os.getpid(), signal.SIGINT)
            try:
                time.sleep(60)
            except BaseException:  # as some libraries do while they are imported
                raise ImportError("cannot load module more than once per process")

sys.meta_path.insert(0, Finder())
raise SystemExit(cli.main(["models"]))
"""


def test_ctrl_c_while_a_command_is_imported_is_one_line() -> None:
    found = subprocess.run(
        [sys.executable, "-c", SLOW_IMPORT],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 130
    assert found.stderr == (
        "bertds: stopped by SIGINT before the command began; run the same command again\n"
    )


def test_an_error_that_follows_from_ctrl_c_is_an_interruption(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(_: list[str]) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process")  # noqa: B904

    assert guarded(main, []) == 130 and capsys.readouterr().err == ""


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    """It would otherwise interrupt the interpreter's clean-up, which prints a traceback."""

    def main(_: list[str]) -> int:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        raise KeyboardInterrupt

    assert guarded(main, []) == 130
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_after_ctrl_c_a_terminal_shows_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live display, interrupted while it begins or ends, leaves it hidden."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def main(_: list[str]) -> int:
        raise KeyboardInterrupt

    for terminal, expected in (("xterm", "\x1b[?25h"), ("dumb", "")):
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("TERM", terminal)
        assert guarded(main, []) == 130
        assert sys.stderr.getvalue() == expected  # type: ignore[attr-defined]


def test_ctrl_c_in_a_callback_of_the_interpreter_is_not_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Linked:
        pass

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    def main(_: list[str]) -> int:
        linked = Linked()
        link = weakref.ref(linked, interrupted)
        del linked  # Python only prints "Exception ignored in"
        assert link() is None
        time.sleep(20)
        return 0

    before = sys.unraisablehook
    assert guarded(main, []) == 130
    assert capsys.readouterr().err == "" and sys.unraisablehook is before

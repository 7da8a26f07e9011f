"""A stop signal while a command starts: one line and the code of the signal, at once.

Imports, the meeting of the processes and the making of their group take up to minutes, much of
it in calls during which Python runs no signal handler. So the signal is taken note of by the
interpreter (``signal.set_wakeup_fd``), and a thread ends the process. Nothing is lost: no step has
been made. As soon as a run can save, it takes the signals over; see :func:`disarm`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

_armed: _Armed | None = None


class _Armed:
    """The signals, from now until :meth:`disarm`."""

    def __init__(self, begins: str) -> None:
        self.begins = begins
        self.leaving: list[Callable[[str, int], None]] = []
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {}
        for number in STOP_SIGNALS:
            handler = signal.getsignal(number)
            # One that is ignored (nohup, a batch script) or handled by the caller stays so.
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = handler
                signal.signal(number, _take_note)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._wait, name="bertds-early-stop", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        while number := int.from_bytes(os.read(self._read, 1)):
            if number in self._before:
                self._end(signal.Signals(number))

    def _end(self, number: signal.Signals) -> None:
        code = 128 + number
        said = f"stopped by {number.name} before {self.begins} began"
        with suppress(OSError):  # the terminal may be the one that was closed
            os.write(2, f"bertds: {said}; run the same command again\n".encode())
        for callback in self.leaving:
            with suppress(Exception):
                callback(said, code)
        os._exit(code)

    def disarm(self) -> None:
        """Give the signals back."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            if signal.getsignal(number) is _take_note:  # else it was taken over
                signal.signal(number, handler)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)


def _take_note(number: int, frame: object) -> None:
    """Do nothing: the thread has been woken, and a default handler would end the process first."""


@contextmanager
def armed(begins: str = "training") -> Iterator[None]:
    """End this process on a stop signal, at once and in one line, until :func:`disarm`.

    Args:
        begins: what the process is about to do, for the line.
    """
    global _armed
    if threading.current_thread() is threading.main_thread():  # others may not handle signals
        _armed = _Armed(begins)
    try:
        yield
    finally:
        disarm()


def on_early_stop(callback: Callable[[str, int], None]) -> None:
    """Have something done before an early stop ends the process.

    Args:
        callback: gets what happened, and the exit code; called by another thread.
    """
    if _armed is not None:
        _armed.leaving.append(callback)


def disarm() -> None:
    """Leave stop signals to others from now on; safe to call twice."""
    global _armed
    if _armed is not None:
        _armed.disarm()
        _armed = None

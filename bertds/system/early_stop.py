"""Handles a stop signal while a command starts: one line, and the exit code of the signal, at once.

Imports, the rendezvous of the processes and the creation of their group can take minutes, mostly in
calls during which Python runs no signal handler. Therefore the interpreter writes the signal to a
pipe (``signal.set_wakeup_fd``), and a thread ends the process. Nothing is lost, since no step was
made. As soon as a run can save, it handles the signals itself; see :func:`disarm`.
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
    """Handles the stop signals from its creation until :meth:`disarm`."""

    def __init__(self, begins: str) -> None:
        self.begins = begins
        self.leaving: list[Callable[[str, int], None]] = []
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {}
        for number in STOP_SIGNALS:
            handler = signal.getsignal(number)
            # A signal that is ignored (nohup, a batch script) or handled by the caller stays so.
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
        with suppress(OSError):  # the terminal may be closed
            os.write(2, f"bertds: {said}; run the same command again\n".encode())
        for callback in self.leaving:
            with suppress(Exception):
                callback(said, code)
        os._exit(code)

    def disarm(self) -> None:
        """Restore the previous handlers."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            if signal.getsignal(number) is _take_note:  # otherwise another handler was installed
                signal.signal(number, handler)
        # A zero byte, which is no signal number, ends the thread.
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)


def _take_note(number: int, frame: object) -> None:
    """Do nothing: the thread was woken, and a default handler would end the process first."""


@contextmanager
def armed(begins: str = "training") -> Iterator[None]:
    """End this process on a stop signal, at once and with one line, until :func:`disarm`.

    Args:
        begins: the work that has not begun yet, for the message.
    """
    global _armed
    if threading.current_thread() is threading.main_thread():  # only it may handle signals
        _armed = _Armed(begins)
    try:
        yield
    finally:
        disarm()


def on_early_stop(callback: Callable[[str, int], None]) -> None:
    """Register a function that runs before an early stop ends the process.

    Args:
        callback: is called with the reason and the exit code, in another thread.
    """
    if _armed is not None:
        _armed.leaving.append(callback)


def disarm() -> None:
    """Leave the stop signals to other handlers from now on; can be called twice."""
    global _armed
    if _armed is not None:
        _armed.disarm()
        _armed = None

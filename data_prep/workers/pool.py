"""Runs tasks in worker processes: bounded memory, no hanging, equal results for any number."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any

from bertds.errors import BertdsError


class Workers:
    """Processes that live through all stages. A context manager. One worker is this process."""

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._pool is None:
            return
        # After an error or Ctrl-C nothing is waited for: unfinished files have temporary names.
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        for process in processes:
            if process.is_alive():
                process.kill()

    def run(
        self,
        function: Callable[[Any], Any],
        tasks: Iterable[Any],
        on_result: Callable[[Any], None],
    ) -> None:
        """Call ``function(task)`` for every task, and ``on_result`` here for each result.

        Tasks are taken from the iterable as workers become free, so it may read a large file. A
        task that raises an error ends the run with it; markers keep the results of the others.

        Args:
            function: a function at module level (workers import it).
            tasks: picklable values.
            on_result: called in the order in which tasks finish.

        Raises:
            BertdsError: a worker died (out of memory, killed).
        """
        if self.count == 1:
            for task in tasks:
                on_result(function(task))
            return
        pool = self._started()
        pending: set[Future[Any]] = set()
        iterator = iter(tasks)
        exhausted = False
        try:
            while pending or not exhausted:
                # Queue at most two tasks per worker: enough to keep them busy, with bounded memory.
                while not exhausted and len(pending) < 2 * self.count:
                    try:
                        task = next(iterator)
                    except StopIteration:
                        exhausted = True
                        break
                    with _interrupts_held_back():
                        pending.add(pool.submit(function, task))
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    on_result(future.result())
        except BrokenProcessPool as error:
            raise BertdsError(
                "a worker process died (killed, or out of memory); run the same command again to "
                "resume, with fewer --workers if it ran out of memory"
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            _start_quiet_tracker()
            # "spawn": a fork of a process with threads (progress bar, numpy) can deadlock.
            self._pool = ProcessPoolExecutor(
                self.count,
                multiprocessing.get_context("spawn"),
                initializer=_prepare_worker,
                initargs=(os.getpid(),),
            )
        return self._pool


def _start_quiet_tracker() -> None:
    """Start the process that removes a pool's semaphores if this process is killed.

    It would report them as leaked, for example after a second Ctrl-C. It removes them anyway, so
    that there is nothing for the user to do. Its warnings are controlled by its environment.
    """
    name, quiet = "PYTHONWARNINGS", "ignore:resource_tracker:UserWarning"
    before = os.environ.get(name)
    os.environ[name] = f"{before},{quiet}" if before else quiet
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hide Ctrl-C from processes started inside, even while they import; this one gets it later.

    A pool starts its processes while tasks are submitted.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(parent: int) -> None:
    """Ignore Ctrl-C, which the parent handles, and make sure not to outlive the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)

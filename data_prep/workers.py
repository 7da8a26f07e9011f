"""Tasks on worker processes: bounded memory, no hanging, the same results for any number."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from bertds.errors import BertdsError


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    workers: int,
    on_result: Callable[[Any], None],
) -> None:
    """Call ``function(task)`` for every task, and ``on_result`` in this process for each result.

    Tasks are taken from the iterable as workers become free, so that it may read a large file. A
    task that raises ends the run with its exception; results of others are kept by their markers.

    Args:
        function: a function of a module (workers import it).
        tasks: picklable values.
        workers: processes; 1 works in this process.
        on_result: called in the order in which tasks finish.

    Raises:
        BertdsError: a worker died (out of memory, killed).
    """
    if workers <= 1:
        for task in tasks:
            on_result(function(task))
        return
    # "spawn": a fork of a process with threads (progress bar, numpy) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, context, initializer=_prepare_worker, initargs=(os.getpid(),)
    )
    pending: set[Future[Any]] = set()
    iterator = iter(tasks)
    try:
        exhausted = False
        while pending or not exhausted:
            while not exhausted and len(pending) < 2 * workers:
                try:
                    pending.add(pool.submit(function, next(iterator)))
                except StopIteration:
                    exhausted = True
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                on_result(future.result())
        pool.shutdown()
    except BrokenProcessPool as error:
        raise BertdsError(
            "a worker process died (killed, or out of memory); run the same command again to go "
            "on from there, with fewer --workers if memory ran out"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process.name.startswith("Spawn"):
                process.terminate()


def _prepare_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)

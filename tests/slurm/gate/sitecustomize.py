"""Holds a run at a step until a test lets it continue.

A test that disturbs a run at certain steps must not depend on how fast the machine takes them. With
this folder in PYTHONPATH, and a file named in BERTDS_TEST_GATE, rank 0 waits after the metric line
of each step for as long as the file holds a smaller number. The other ranks wait for it in the next
step's collectives; signals, heartbeats and locks continue as usual.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time

GATE = os.environ.get("BERTDS_TEST_GATE", "")
MODULE = "bertds.monitor.metrics"


def allowed() -> int:
    """The last step that may be followed by another."""
    try:
        with open(GATE) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0  # it is being written


class Finder(importlib.abc.MetaPathFinder):
    """Finds the module as usual, and has it wait where it writes a line."""

    def find_spec(self, name, path=None, target=None):
        """Return the usual spec with a loader that patches the module after running it."""
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            write = module.append_line

            def append_line(file, text):
                write(file, text)
                step = text.partition('"step": ')[2].partition(",")[0]
                stop = os.path.join(os.path.dirname(file), "STOP")
                while '"split"' not in text and int(step) >= allowed():
                    if os.path.exists(stop) or held.signals:
                        return
                    time.sleep(0.02)

            module.append_line = append_line

        spec.loader.exec_module = exec_module
        return spec


class held:
    """Which stop notices have come: a run that is asked to stop is let go."""

    signals: list = []


if GATE:
    import signal

    install = signal.signal

    def notice(number, handler):
        """Install a handler that also opens the gate."""
        if not callable(handler):
            return install(number, handler)

        def both(*arguments):
            held.signals.append(number)
            return handler(*arguments)

        return install(number, both)

    signal.signal = notice
    sys.meta_path.insert(0, Finder())

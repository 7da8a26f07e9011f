"""Detects a peer that is dead or frozen while this rank waits for it, and ends the job.

```text
each rank, every second or two          rank 0                        the others
  beat/R = n  -----------------------> reads all beats
                                        one makes no progress -> verdict -> read the verdict and
                                                                       rank 0's own beat
```

Each rank has two daemon threads in addition to training, which never block it. One talks to the
store of the process group. The other judges, and so cannot hang in the store. Processes on the same
machine also watch each other's process ids, so a killed one is noticed within 1 or 2 s. The threads
continue while a rank compiles, saves or validates: only a process that does not run at all is
silent. The rank that finds a lost peer names it, kills it if it is frozen on the same machine (a
stopped process would keep its port and its GPU), and leaves.

Each beat also contains the state of the rank's training. Rank 0 compares them all and names the
rank that makes no progress (``progress.py``). A small separate process ends a process in which no
thread runs any more (``watchdog.py``).

Silence is measured in the listener's own running time, and only over rounds in which it listened.
A listener without CPU time would otherwise mistake its own deafness for the silence of the others.
A silent process on the same machine whose processor time grows is starved, not frozen. It gets ten
times as long or, once the run knows the duration of a step, the limit for progress.

A rank that leaves early writes the reason and its exit code to the store. If it only stops early
(because of a store that does not respond, or a signal), the others end with the same code instead
of a failure.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from bertds.distributed.last_words import LastWords, is_of_a_collective
from bertds.distributed.liveness import KeyValueStore, OwnTime, ParentWatch, TimedStore
from bertds.distributed.neighbours import Neighbours
from bertds.distributed.progress import Progress, Sign, Standstill
from bertds.distributed.watchdog import Watchdog
from bertds.errors import EXIT_FAILED, BertdsError, StoppedError, one_line
from bertds.system.logs import log
from bertds.system.processes import start_time

NEIGHBOURS = 8
"""Ranks whose numbers differ by at most this are checked for being on the same machine."""
STARVED = 10
"""A silent process on this machine that uses the CPU gets this number of timeouts."""
OUTSIDE = 1.5
"""The watchdog process waits longer than the peers by this factor, so that they name the rank."""
LEAVE_SECONDS = 60.0
"""A rank that leaves because of a failure is killed if it has not ended after this time."""
RESERVE = 4 << 20
"""Bytes that are freed when a rank leaves, so that it can leave although memory is exhausted."""

_LOST = re.compile(r"rank (\d+)(?: \(process \d+ on [^)]*\))? is lost: ")


class Heartbeat:
    """Watches the peers of one run, from :meth:`start` to :meth:`stop`.

    Args:
        rank: of this process.
        world_size: number of ranks; a single one watches nothing.
        timeout_seconds: a peer that is silent for this long is lost.
        store: the process group's key-value store; each thread uses a clone.
        progress_seconds: a rank whose training makes no progress for this long, or for five step
            times if that is longer, is lost; 0 = only silence counts.
        on_leave: called before this process is ended because of a peer; releases locks.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        timeout_seconds: float,
        store: KeyValueStore,
        progress_seconds: float = 0.0,
        on_leave: Callable[[], None] = lambda: None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.timeout = timeout_seconds
        self.period = min(2.0, max(0.1, timeout_seconds / 20))
        self.verdict = ""
        """Why a peer is lost, once one is."""
        self.exit_code = EXIT_FAILED
        """The exit code of this process then: the peer's own code if it only stopped early."""
        self._store = store
        self._on_leave = on_leave
        self.progress = Progress(progress_seconds)
        """The activity of the main thread, which the main thread sets."""
        self._standstill = Standstill(self.progress, world_size)
        self._watchdog = Watchdog(rank)
        self._reserve: bytearray | None = bytearray(RESERVE)
        self._words = LastWords(rank)
        self._gone: set[int] = set()
        self._rounds = 0  # number of rounds of listening
        self._deaf = False  # whether the store is gone
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._found = threading.Event()
        self._main_handles_it = False
        self._main_leaves = False
        self._threads: list[threading.Thread] = []
        self._own = OwnTime(3 * self.period)
        self._seen = dict.fromkeys(self._watched(), 0.0)  # on our own clock, like _listened
        self._listened = 0.0
        self._talk: TimedStore | None = None
        self._beats: dict[int, str] = {}
        self._peers: dict[int, dict[str, Any]] = {}
        self._neighbours = Neighbours()
        self._parent = ParentWatch()

    def start(self) -> Heartbeat:
        """Start to beat and to watch."""
        if self.world_size > 1:
            self._watchdog.start()
            self._threads = [
                threading.Thread(target=work, name=f"bertds-{name}", daemon=True)
                for name, work in (("beat", self._beat), ("watch", self._watch))
            ]
            for thread in self._threads:
                thread.start()
        return self

    def begin_to_leave(self) -> None:
        """Prepare to leave because of a failure; needs neither memory nor a new thread."""
        self._reserve = None
        self._watchdog.leaving(LEAVE_SECONDS)

    def stop(self, failure: str = "", code: int = EXIT_FAILED) -> None:
        """End the threads.

        Args:
            failure: why this rank leaves early, for the others; "" = it leaves with them.
            code: the exit code with which it leaves early; the others end with it too.
        """
        if not self._threads:
            return
        self._main_leaves = True
        if failure:
            self.begin_to_leave()
            # The talking thread publishes it: no thread can be started if memory is exhausted, and
            # without a store, this might block for ever.
            self._words.say(failure, code)
            # An early stop waits until it is heard, however slow this machine is: else others fail.
            early = code != EXIT_FAILED
            self._talk_until(self._words.said.is_set, self.timeout if early else 2 * self.period)
            if self.rank == 0:
                # Rank 0's process holds the store: give the others time to read it.
                self._talk_until(self._all_leave, self.timeout if early else 3 * self.period)
        self._stopped.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(2 * self.period)
        self._threads = []
        if not failure:
            self._watchdog.stop()

    def _talk_until(self, done: Callable[[], bool], seconds: float) -> None:
        """Make the talking thread hurry, until something is done or the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (done() or self._deaf):
            self._wake.set()
            time.sleep(min(0.05, self.period))

    def _all_leave(self) -> bool:
        """Return whether all other ranks have announced that they leave, or have ended."""
        return len(self._words.left | self._neighbours.ended()) >= self.world_size - 1

    def explain(self, error: BaseException) -> BertdsError | None:
        """Return an error that names the peer which made a collective operation fail.

        Waits until the watch has found the peer, at most ``timeout_seconds``.

        Returns:
            None if no peer is at fault; a :class:`StoppedError` if the peer only stopped early.
        """
        if not self._threads or not is_of_a_collective(error):
            return None
        self._main_handles_it = True
        self._found.wait(self.timeout + 4 * self.period)
        if not self.verdict:
            return None
        kind = BertdsError if self.exit_code == EXIT_FAILED else StoppedError
        lost = kind(f"{self.verdict}; run the same command again to resume")
        lost.exit_code = self.exit_code
        return lost

    # -- the talking thread ------------------------------------------------------------------

    def _watched(self) -> list[int]:
        everybody = range(self.world_size)
        return [r for r in everybody if r != self.rank] if self.rank == 0 else [0]

    @staticmethod
    def _key(what: str, rank: int) -> str:
        return f"bertds/{what}/{rank}"

    def _beat(self) -> None:
        try:
            clone = self._store.clone()
            clone.set_timeout(timedelta(seconds=self.timeout))
            store = self._talk = TimedStore(clone, self._own)
            me = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "start": start_time(os.getpid()),
            }
            store.set(self._key("who", self.rank), json.dumps(me))
            self._peers[self.rank] = me
            number = 0
            while not self._stopped.is_set():
                number += 1
                self._wake.clear()
                sign = self.progress.sign(number)
                store.set(self._key("beat", self.rank), sign.to_text())
                self._words.publish(store)
                self._watchdog.alive(OUTSIDE * self._longest_silence())
                self._meet(store)
                self._listen(store)
                self._standstill.note(self.rank, sign, self._own.seconds)
                self._wake.wait(self.period)
        except Exception as error:  # the store is gone, and rank 0 with it
            self._deaf = True
            if not self._stopped.is_set() and not self._left_in_order():
                why = str(error).splitlines()[0][:120]
                self._conclude(0, f"is lost: its store does not respond ({why})")

    def _left_in_order(self) -> bool:
        """Wait a moment: at the end of a run the store may vanish before this thread is stopped."""
        return self._stopped.wait(4 * self.period)

    def _meet(self, store: TimedStore) -> None:
        """Learn who the peers are; those on this machine can be watched by process id.

        Rank 0 asks for all. The others ask for rank 0 and for their neighbours, which are likely to
        be on the same machine: 1,000 ranks that ask for 1,000 would overload the store.
        """
        nearby = range(
            max(0, self.rank - NEIGHBOURS), min(self.world_size, self.rank + NEIGHBOURS + 1)
        )
        for other in range(self.world_size) if self.rank == 0 else {0, *nearby}:
            if other == self.rank or other in self._peers:
                continue
            key = self._key("who", other)
            if store.has(key):
                who = json.loads(store.get(key))
                self._peers[other] = who
                self._neighbours.add(other, who)

    def _listen(self, store: TimedStore) -> None:
        keys = [self._key("beat", other) for other in self._watched()]
        for other in tuple(self._gone):  # the last message of a neighbour, if it had one
            self._hear(store, other)
        for other, key in zip(self._watched(), keys, strict=True):
            if self.rank == 0:
                self._hear(store, other)
            if store.has(key):
                value = store.get(key)
                if self._beats.get(other) != value:
                    self._beats[other] = value
                    self._seen[other] = self._own.seconds
                    self._standstill.note(other, Sign.from_text(value), self._own.seconds)
        if self.rank == 0:
            if self.verdict:
                store.set("bertds/verdict", json.dumps([self.exit_code, self.verdict]))
        elif store.has("bertds/verdict"):
            code, verdict = json.loads(store.get("bertds/verdict"))
            self._set(verdict, code)
        else:
            self._hear(store, 0)
        self._listened = self._own.seconds
        self._rounds += 1

    def _hear(self, store: TimedStore, other: int) -> None:
        """Record that a peer has announced that it leaves."""
        if (word := self._words.hear(store, other)) is not None:
            self._conclude(other, f"exited with: {word.text}", word.code)

    # -- the judging thread ------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopped.wait(self.period):
            now = self._own.tick()
            self._look_at_neighbours()
            self._look_at_parent(now)
            for other in self._seen:
                silence = self._silence(other)
                if silence > (self._longest_silence() if self._runs(other) else self.timeout):
                    self._conclude(other, f"is lost: silent for {silence:.0f} s")
            if self.rank == 0:
                self._look_for_standstill()
            if self.verdict:
                self._leave()
                return

    def _longest_silence(self) -> float:
        """Return how long a process that uses the CPU may be silent, in seconds."""
        limit = self.progress.limit(self.progress.activity)
        return self.timeout * STARVED if limit is None else max(self.timeout, limit)

    def _look_for_standstill(self) -> None:
        found = self._standstill.find(self._listened)
        if found is None:
            return
        named, said = found
        if len(named) > 1:
            said += f"; the same applies to ranks {', '.join(map(str, named[1:NEIGHBOURS]))}"
        self._conclude(named[0], f"is lost: {said}")

    def _silence(self, other: int) -> float:
        """Return how long a peer is known to have been silent, in our own running time."""
        silence = self._listened - self._seen[other]
        asked = self._talk.asked if self._talk else 0.0
        if other == 0 and asked is not None:  # its process holds the store, which does not respond
            silence = max(silence, self._own.seconds - asked)
        return silence

    def _runs(self, other: int) -> bool:
        return self._neighbours.ran_since(other, self._own.seconds - self.timeout)

    def _look_at_neighbours(self) -> None:
        self._neighbours.look(self._own.seconds)
        for other in self._neighbours.ended():
            # It may have left with a message: give the message time to arrive.
            self._wait_for_last_word(other)
            if not self._stopped.is_set():
                self._conclude(other, "is lost: its process has ended (killed or out of memory)")

    def _wait_for_last_word(self, other: int) -> None:
        """Wait until the talking thread has asked for its message, however slow this machine is."""
        self._gone.add(other)
        self._stopped.wait(2 * self.period)
        # The current round may have begun earlier; the one after it has not.
        enough = self._rounds + 2
        self._talk_until(lambda: self._rounds >= enough or self._stopped.is_set(), self.timeout)

    def _look_at_parent(self, now: float) -> None:
        """Leave if the launcher is gone and this rank hangs; otherwise the training loop stops."""
        if self._parent.orphaned_and_idle(now, self.progress.count) > self.timeout:
            self._set(
                f"rank {self.rank}: the launcher is gone, and no step was completed for "
                f"{self.timeout:.0f} s"
            )

    def _conclude(self, rank: int, what: str, code: int = EXIT_FAILED) -> None:
        who = self._peers.get(rank)
        place = f" (process {who['pid']} on {who['host']})" if who else ""
        self._set(f"rank {rank}{place} {what}", code)

    def _set(self, verdict: str, code: int = EXIT_FAILED) -> None:
        if not self.verdict:
            self.exit_code = code
            self.verdict = verdict
            self._found.set()

    def _leave(self) -> None:
        self._watchdog.leaving(LEAVE_SECONDS)
        self._end_frozen()
        self._words.say(self.verdict, self.exit_code)  # rank 0 keeps the store until it is read
        self._wake.set()
        # Rank 0's process holds the store: give the others time to read the verdict. And this
        # rank's main thread may already be leaving with an error of its own.
        if self._stopped.wait(3 * self.period):
            return
        if (self._main_leaves or self._main_handles_it) and self._stopped.wait(30.0):
            return  # the main thread left its collective, or failed, and reports its own error
        message = f"{self.verdict}. This job stops now; run the same command again to resume"
        log.error("%s", message) if log.handlers else print(one_line(message), file=sys.stderr)
        with suppress(Exception):
            self._on_leave()
        for handler in log.handlers:
            with suppress(Exception):
                handler.flush()
        os._exit(self.exit_code)

    def _end_frozen(self) -> None:
        """Kill silent peers on this machine: stopped ones would keep their port and GPU."""
        # Except one that only reported another loss ("rank 0 exited with: rank 1 is lost: ...").
        found = _LOST.match(self.verdict)
        named = int(found[1]) if found else None
        for other in self._neighbours.ranks():
            silent = other in self._seen and self._silence(other) > self.timeout
            if other == named or (silent and not self._runs(other)):
                self._neighbours.kill(other, self.verdict)

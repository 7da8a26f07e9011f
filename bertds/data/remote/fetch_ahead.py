"""Brings shards into the cache, what is needed soonest first, in threads of its own.

Whoever needs a shard now waits for it by :meth:`FetchAhead.wait_for`, which measures and says the
wait. A request that fails is made again with growing pauses; only the wait has a limit.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from bertds.data.formats.manifest import ShardInfo
from bertds.data.remote.cache import Busy, NoRoom, ShardCache, WrongBytes
from bertds.errors import BertdsError, DataError, StoreError
from bertds.system import storage
from bertds.system.logs import log
from bertds.system.secrets import masked

THREADS = 4
"""Shards on their way at once: enough that one slow answer does not leave the line idle."""
SAY_AFTER_SECONDS, SAY_AGAIN_SECONDS = 5.0, 60.0
_SAME_WRONG_BYTES = 3
"""After this number of arrivals with the same wrong checksum, the stored file is different."""
_NO_ROOM = "the cache is full: all of data.cache_gib is in use; raise it"
_LOOK_SECONDS = 0.1
_FULL_SECONDS = 5.0
"""How long nothing is fetched ahead into a cache that has no room for what is needed soonest."""


@dataclass(slots=True)
class _Trouble:
    """What went wrong with a shard so far."""

    text: str = ""
    pause: float = storage.FIRST_PAUSE
    not_before: float = 0.0
    wrong: str = ""
    wrong_count: int = 0
    fatal: BertdsError | None = None


class FetchAhead:
    """The fetches of one process.

    Args:
        cache: the machine's.
        url: the folder's.
        timeout_seconds: how long :meth:`wait_for` waits for one shard.
    """

    def __init__(self, cache: ShardCache, url: str, timeout_seconds: float) -> None:
        self.cache, self.url, self.timeout_seconds = cache, url, timeout_seconds
        self.stalled_seconds = 0.0
        """How long callers of :meth:`wait_for` have waited, in all."""
        self._urgent: list[ShardInfo] = []
        # Of what was wanted last: what is not there yet, soonest first, and the place of each.
        self._wanted: deque[ShardInfo] = deque()
        self._places: dict[str, int] = {}
        self._full_until = 0.0
        self._under_way: set[str] = set()
        self._trouble: dict[str, _Trouble] = {}
        self._changed = threading.Condition()
        self._interrupts = 0
        self._threads: list[threading.Thread] = []

    def want(self, infos: Sequence[ShardInfo], room: int) -> None:
        """Say which shards are read next, soonest first; replaces what was said before.

        Args:
            infos: the shards; those that are there count as used just now.
            room: bytes that they may take together; what comes after is left for later.
        """
        kept: list[ShardInfo] = []
        seen: set[str] = set()
        for info in infos:
            if info.sha256 in seen:
                continue
            room -= info.bytes
            if room < 0:
                break
            seen.add(info.sha256)
            kept.append(info)
        missing: deque[ShardInfo] = deque()
        for info in reversed(kept):  # the soonest is the most recently used
            if self.cache.holds(info.sha256):
                self.cache.touch(self.cache.file(info.sha256))
            else:
                missing.appendleft(info)
        with self._changed:
            self._wanted = missing
            self._places = {info.sha256: place for place, info in enumerate(kept)}
            self._full_until = 0.0
            self._start()
            self._changed.notify_all()

    def wait_for(self, info: ShardInfo, what: str) -> int:
        """Return a descriptor that pins a shard, as soon as it is there.

        Args:
            info: the shard.
            what: names it in messages: ``shard 12 of s3://...``.

        Raises:
            StoreError: it did not come within the time, or :meth:`interrupt` was called.
            DataError: it is not in the store, or is another file there.
        """
        if (there := self.cache.pin(info.sha256)) is not None:
            return there
        began = time.monotonic()
        say_at = began + SAY_AFTER_SECONDS
        with self._changed:
            self._urgent.append(info)
            interrupts = self._interrupts
            self._start()
            self._changed.notify_all()
        try:
            while True:
                with self._changed:
                    self._changed.wait(_LOOK_SECONDS)
                    trouble = self._trouble.get(info.sha256) or _Trouble()
                if (there := self.cache.pin(info.sha256)) is not None:
                    return there
                if self._interrupts > interrupts:
                    raise StoreError(f"stopped waiting for {what}")
                if trouble.fatal is not None:
                    raise trouble.fatal
                now = time.monotonic()
                why = f" ({trouble.text})" if trouble.text else ""
                if now - began > storage.patience(self.timeout_seconds):
                    raise StoreError(
                        f"stalled: {what} did not arrive in {(now - began) / 60:.1f} minutes "
                        f"(data.fetch_timeout_minutes){why}"
                    )
                if now >= say_at:
                    say_at = now + SAY_AGAIN_SECONDS
                    log.warning("stalled: waiting for %s, %.0f s so far%s", what, now - began, why)
        finally:
            waited = time.monotonic() - began
            with self._changed:
                self._urgent.remove(info)
                self.stalled_seconds += waited
            if waited > SAY_AFTER_SECONDS:
                log.info("%s: arrived after %.0f s", what, waited)

    def interrupt(self) -> None:
        """End the waits that are under way, and fetch nothing more ahead."""
        with self._changed:
            self._interrupts += 1
            self._wanted.clear()
            self._changed.notify_all()

    def _start(self) -> None:
        """Start the threads that are missing. The lock is held."""
        while (self._urgent or self._wanted) and len(self._threads) < THREADS:
            # Daemons: a driver may hang in a request, and the process must be able to end.
            thread = threading.Thread(target=self._work, name="bertds-fetch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                info, keep = self._next()
                if info is None:
                    if not self._urgent and not self._wanted:
                        self._threads.remove(threading.current_thread())
                        return
                    # Not for ever: another process may evict, and pauses end by the clock.
                    self._changed.wait(_LOOK_SECONDS)
                    continue
                self._under_way.add(info.sha256)
            try:
                self._fetch(info, keep)
            finally:
                with self._changed:
                    self._under_way.discard(info.sha256)
                    self._changed.notify_all()

    def _next(self) -> tuple[ShardInfo | None, frozenset[str]]:
        """Return the shard that is missing and needed soonest, and those needed sooner.

        The lock is held.
        """
        for number, info in enumerate(self._urgent):
            if not self.cache.holds(info.sha256) and self._may_fetch(info):
                return info, frozenset(sooner.sha256 for sooner in self._urgent[:number])
        if time.monotonic() < self._full_until:
            return None, frozenset()
        number = 0
        while number < len(self._wanted):
            info = self._wanted[number]
            if self.cache.holds(info.sha256) or self._is_hopeless(info):
                # One that is evicted again, or does not exist, is urgent when its turn comes.
                del self._wanted[number]
            elif self._may_fetch(info):
                sooner = islice(self._places, self._places[info.sha256])
                return info, frozenset(sooner).union(one.sha256 for one in self._urgent)
            else:
                number += 1
        return None, frozenset()

    def _is_hopeless(self, info: ShardInfo) -> bool:
        trouble = self._trouble.get(info.sha256)
        return trouble is not None and trouble.fatal is not None

    def _may_fetch(self, info: ShardInfo) -> bool:
        """Return whether a shard is neither on its way nor put off. The lock is held."""
        trouble = self._trouble.get(info.sha256)
        if trouble is not None and (trouble.fatal or trouble.not_before > time.monotonic()):
            return False
        return info.sha256 not in self._under_way

    def _fetch(self, info: ShardInfo, keep: frozenset[str]) -> None:
        url = storage.join(self.url, info.file)

        def read(start: int, end: int) -> bytes:
            self._has_room(info)
            return _read(url, info.bytes, start, end)

        try:
            os.close(self.cache.fetch(info.sha256, info.bytes, read, keep))
        except Busy:
            self._later(info, "", grow=False)
        except NoRoom:
            self._later(info, _NO_ROOM, grow=False)
            with self._changed:
                if info not in self._urgent:  # then there is none for what is needed later either
                    self._full_until = time.monotonic() + _FULL_SECONDS
        except WrongBytes as error:
            self._wrong(info, url, error.sha256)
        except FileNotFoundError:
            self._fatal(info, DataError(f"{masked(url)}: missing, but listed in the manifest"))
        except BertdsError as error:
            self._fatal(info, error)
        except Exception as error:
            if storage.lasts(error):
                self._fatal(info, DataError(f"{masked(url)}: {storage.reason(error)}"))
            else:
                self._later(info, storage.reason(error))
        else:
            with self._changed:
                self._trouble.pop(info.sha256, None)

    def _has_room(self, info: ShardInfo) -> None:
        """Note that a full cache is no longer why a shard is not there."""
        with self._changed:
            trouble = self._trouble.get(info.sha256)
            if trouble is not None and trouble.text == _NO_ROOM:
                trouble.text = ""

    def _wrong(self, info: ShardInfo, url: str, found: str) -> None:
        text = (
            f"damaged on arrival: SHA-256 {found[:12]}..., but the manifest says {info.sha256[:12]}"
        )
        log.warning("%s: %s...; downloading it again", masked(url), text)
        with self._changed:
            trouble = self._trouble.setdefault(info.sha256, _Trouble())
            trouble.wrong_count = trouble.wrong_count + 1 if trouble.wrong == found else 1
            trouble.wrong = found
            often = trouble.wrong_count >= _SAME_WRONG_BYTES
        if often:
            self._fatal(
                info, DataError(f"{masked(url)}: {text}...; the file in the store is different")
            )
        else:
            self._later(info, text)

    def _later(self, info: ShardInfo, text: str, *, grow: bool = True) -> None:
        """Put a shard off."""
        with self._changed:
            trouble = self._trouble.setdefault(info.sha256, _Trouble())
            trouble.text = text
            trouble.not_before = time.monotonic() + (trouble.pause if grow else _LOOK_SECONDS)
            if grow:
                trouble.pause = min(2 * trouble.pause, storage.LONGEST_PAUSE)

    def _fatal(self, info: ShardInfo, error: BertdsError) -> None:
        with self._changed:
            self._trouble.setdefault(info.sha256, _Trouble()).fatal = error


def _read(url: str, size: int, start: int, end: int) -> bytes:
    """Read one stretch; a slip is repeated here, so that what came before it is not lost."""
    for pause in (0.2, 0.5):
        try:
            return storage.read_range(url, start, end, size)
        except Exception as error:
            if isinstance(error, BertdsError) or storage.lasts(error):
                raise
            time.sleep(pause)
    return storage.read_range(url, start, end, size)

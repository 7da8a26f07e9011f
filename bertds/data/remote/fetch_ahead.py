"""Fetches shards into the cache in background threads, those needed soonest first.

A caller that needs a shard now waits for it in :meth:`FetchAhead.wait_for`, which measures and
reports the wait. Failed requests are repeated with growing pauses; only the wait has a limit.
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
"""Shards in transfer at the same time: enough that one slow response does not idle the network."""
SAY_AFTER_SECONDS, SAY_AGAIN_SECONDS = 5.0, 60.0
_SAME_WRONG_BYTES = 3
"""After this number of arrivals with the same wrong checksum, the stored file is different."""
_NO_ROOM = "the cache is full: all of data.cache_gib is in use; raise it"
_LOOK_SECONDS = 0.1
_FULL_SECONDS = 5.0
"""How long nothing is fetched ahead after the cache had no room for what is needed soonest."""


@dataclass(slots=True)
class _Trouble:
    """The failures of a shard so far."""

    text: str = ""
    pause: float = storage.FIRST_PAUSE
    not_before: float = 0.0
    wrong: str = ""
    wrong_count: int = 0
    fatal: BertdsError | None = None
    """The error that another attempt would not change."""


class FetchAhead:
    """The fetches of one process.

    Args:
        cache: of this machine.
        url: of the prepared folder.
        timeout_seconds: how long :meth:`wait_for` waits for one shard.
    """

    def __init__(self, cache: ShardCache, url: str, timeout_seconds: float) -> None:
        self.cache, self.url, self.timeout_seconds = cache, url, timeout_seconds
        self._urgent: list[ShardInfo] = []
        # The missing shards of the last want(), soonest first, and the place of each of its shards.
        self._wanted: deque[ShardInfo] = deque()
        self._places: dict[str, int] = {}
        self._full_until = 0.0
        self._await_repair = False
        self._under_way: set[str] = set()
        self._trouble: dict[str, _Trouble] = {}
        self._changed = threading.Condition()
        self._interrupts = 0
        self._threads: list[threading.Thread] = []

    def want(self, infos: Sequence[ShardInfo], room: int) -> None:
        """Set the shards that are read next, soonest first; replaces the previous list.

        Args:
            infos: the shards; those in the cache count as just used.
            room: bytes that they may take together; the rest is left for later.
        """
        # Take shards up to the room; a shard may be needed as a partner of several others.
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
        """Return a descriptor that pins a shard, as soon as it is in the cache.

        Args:
            info: the shard.
            what: its name in messages: ``shard 12 of s3://...``.

        Raises:
            StoreError: it did not arrive in time, or :meth:`interrupt` was called.
            DataError: it is missing from the store, or the store has a different file; not after
                :meth:`wait_for_repair`.
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
                    # Wakes up regularly too: another process may bring the shard into the cache.
                    self._changed.wait(_LOOK_SECONDS)
                    trouble = self._trouble.get(info.sha256) or _Trouble()
                now = time.monotonic()
                if (there := self.cache.pin(info.sha256)) is not None:
                    if now - began > SAY_AFTER_SECONDS:
                        log.info("%s: arrived after %.0f s", what, now - began)
                    return there
                if self._interrupts > interrupts:
                    raise StoreError(f"stopped waiting for {what}")
                if trouble.fatal is not None and self._is_final(trouble):
                    raise trouble.fatal
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
            with self._changed:
                self._urgent.remove(info)

    def wait_for_repair(self) -> None:
        """From now on, wait for a shard that is missing or different, as for a slow store."""
        if self._await_repair:  # called after every batch
            return
        with self._changed:
            self._await_repair = True
            self._changed.notify_all()

    def interrupt(self) -> None:
        """End the waits in progress, and fetch nothing more ahead."""
        with self._changed:
            self._interrupts += 1
            self._wanted.clear()
            self._changed.notify_all()

    def _start(self) -> None:
        """Start missing threads. The caller holds the lock."""
        while (self._urgent or self._wanted) and len(self._threads) < THREADS:
            # Daemon threads: a driver may hang in a request, and the process must be able to exit.
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
                    # With a timeout: another process may evict files, and pauses end with time.
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
        """Return the missing shard that is needed soonest, and those that are needed sooner.

        The latter must not be evicted for it. The caller holds the lock.
        """
        # Shards that a caller waits for come before those that are fetched ahead.
        for number, info in enumerate(self._urgent):
            if not self.cache.holds(info.sha256) and self._may_fetch(info):
                return info, frozenset(sooner.sha256 for sooner in self._urgent[:number])
        if time.monotonic() < self._full_until:
            return None, frozenset()
        number = 0
        while number < len(self._wanted):
            info = self._wanted[number]
            trouble = self._trouble.get(info.sha256)
            if self.cache.holds(info.sha256) or (trouble and self._is_final(trouble)):
                # If it is evicted again or does not exist, it becomes urgent when it is needed.
                del self._wanted[number]
            elif self._may_fetch(info):
                sooner = islice(self._places, self._places[info.sha256])
                return info, frozenset(sooner).union(one.sha256 for one in self._urgent)
            else:
                number += 1
        return None, frozenset()

    def _is_final(self, trouble: _Trouble) -> bool:
        """Return whether a shard is not asked for again. A file in the store can be repaired."""
        repairable = self._await_repair and isinstance(trouble.fatal, DataError)
        return trouble.fatal is not None and not repairable

    def _may_fetch(self, info: ShardInfo) -> bool:
        """Return whether a shard is neither in transfer nor postponed. Call with the lock held."""
        trouble = self._trouble.get(info.sha256)
        if trouble and (self._is_final(trouble) or trouble.not_before > time.monotonic()):
            return False
        return info.sha256 not in self._under_way

    def _fetch(self, info: ShardInfo, keep: frozenset[str]) -> None:
        url = storage.join(self.url, info.file)

        def read(start: int, end: int) -> bytes:
            self._has_room(info)
            return _read(url, info.bytes, start, end)

        try:
            os.close(self.cache.fetch(info.sha256, info.bytes, read, keep))
        # Another process fetches this file, or the cache is full: not an error of the store.
        except Busy:
            self._later(info, "", grow=False)
        except NoRoom:
            self._later(info, _NO_ROOM, grow=False)
            with self._changed:
                if info not in self._urgent:  # then there is no room for later ones either
                    self._full_until = time.monotonic() + _FULL_SECONDS
        except WrongBytes as error:
            self._wrong(info, url, error.sha256)
        except FileNotFoundError:
            self._fatal(info, DataError(f"{masked(url)}: missing, but listed in the manifest"))
        except BertdsError as error:
            self._fatal(info, error)
        # A driver's error: some are permanent (no permission), the others are tried again.
        except Exception as error:
            if storage.lasts(error):
                self._fatal(info, DataError(f"{masked(url)}: {storage.reason(error)}"))
            else:
                self._later(info, storage.reason(error))
        else:
            with self._changed:
                self._trouble.pop(info.sha256, None)

    def _has_room(self, info: ShardInfo) -> None:
        """Clear the note that the cache is full when this shard has room again."""
        with self._changed:
            trouble = self._trouble.get(info.sha256)
            if trouble is not None and trouble.text == _NO_ROOM:
                trouble.text = ""

    def _wrong(self, info: ShardInfo, url: str, found: str) -> None:
        # Once is a transfer error. The same wrong checksum several times is a different file.
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
        """Postpone a shard; with ``grow`` the next pause is twice as long."""
        with self._changed:
            trouble = self._trouble.setdefault(info.sha256, _Trouble())
            trouble.text, trouble.fatal = text, None
            trouble.not_before = time.monotonic() + (trouble.pause if grow else _LOOK_SECONDS)
            if grow:
                trouble.pause = min(2 * trouble.pause, storage.LONGEST_PAUSE)

    def _fatal(self, info: ShardInfo, error: BertdsError) -> None:
        with self._changed:
            self._later(info, str(error))  # asked for again only after wait_for_repair()
            self._trouble[info.sha256].fatal = error


def _read(url: str, size: int, start: int, end: int) -> bytes:
    """Read one range; a brief failure is retried here, so that earlier ranges are not lost."""
    for pause in (0.2, 0.5):
        try:
            return storage.read_range(url, start, end, size)
        except Exception as error:
            if isinstance(error, BertdsError) or storage.lasts(error):
                raise
            time.sleep(pause)
    return storage.read_range(url, start, end, size)

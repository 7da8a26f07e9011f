"""Token shards in a store, read through this machine's cache; rows equal those of a local folder.

```text
open:    manifest and tokenizer; sentence lengths are collected once (one read of the corpus)
epoch:   order, from the lengths --read_ahead--> shards fetched in it, as many as the cache holds
block:   its shards are pinned and mapped, and released with the block
```
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bertds.config.recipe import DataConfig
from bertds.data.formats.token_shards import TokenShard
from bertds.data.order import shard_order
from bertds.data.remote.cache import NoRoom, ShardCache
from bertds.data.remote.fetch_ahead import FetchAhead
from bertds.data.remote.folder import default_cache_folder, mirror
from bertds.data.remote.outlines import Outlines, outline_bytes
from bertds.data.samples.pairing import count_shard
from bertds.data.sources.token_source import READ_AHEAD, TokenBlock, TokenSource
from bertds.errors import ConfigError, DataError
from bertds.system.logs import log
from bertds.system.secrets import masked

_TRIES = 3
_SAY_SECONDS = 60.0


class RemoteTokenSource(TokenSource):
    """Token shards of a prepared folder in a store; see :meth:`open`."""

    may_stall = True

    @staticmethod
    def open(data_config: DataConfig, seed: int, *, split: str) -> RemoteTokenSource:
        """Open a prepared folder by its URL.

        Args:
            data_config: ``path`` is the URL of the folder that holds ``manifest.json``.
            seed: decides pairs and masks.
            split: "train" or "validation".

        Raises:
            ConfigError: the cache is too small, or the driver is missing.
            DataError: there is no manifest, or it is damaged.
            StoreError: the store did not answer within ``fetch_timeout_minutes``.
        """
        top = Path(data_config.cache_dir or default_cache_folder())
        timeout = data_config.fetch_timeout_minutes * 60.0
        folder = mirror(data_config.path, top, timeout)
        cache = ShardCache(top / "shards", int(data_config.cache_gib * 2**30))
        fetches = FetchAhead(cache, data_config.path, timeout)
        return RemoteTokenSource._of(folder, fetches, seed, split, data_config)

    @staticmethod
    def _of(
        folder: Path, fetches: FetchAhead, seed: int, split: str, data_config: DataConfig
    ) -> RemoteTokenSource:
        source = RemoteTokenSource.from_folder(
            folder,
            data_config.rows,
            seed,
            split=split,
            verify=data_config.verify,
            vocab=data_config.vocab,
            name=masked(data_config.path),
        )
        source._use(fetches, data_config)
        # When the source is garbage-collected, nothing more is fetched ahead for it.
        weakref.finalize(source, fetches.want, (), 0).atexit = False
        return source

    def _use(self, fetches: FetchAhead, data_config: DataConfig) -> None:
        self._fetches, self._config = fetches, data_config
        self._alive: weakref.WeakValueDictionary[int, TokenShard] = weakref.WeakValueDictionary()
        self._checked: set[tuple[int, int]] = set()
        cache = fetches.cache
        # Sentence lengths stay in the cache, so they reduce the room for shards.
        try:
            self._outlines = Outlines(cache, self._infos)
        except NoRoom:
            raise self._too_small(
                outline_bytes(self._infos), "the lengths of its sentences"
            ) from None
        self._room = cache.limit - outline_bytes(self._infos)
        largest = max(self._infos, key=lambda info: info.bytes)
        if largest.bytes > self._room:
            raise self._too_small(
                largest.bytes + cache.limit - self._room, f"{largest.file} and sentence lengths"
            )

    def _too_small(self, size: int, what: str) -> ConfigError:
        return ConfigError(
            f"data.cache_gib={self._config.cache_gib:g} is too small for {self.name}: {what} "
            f"alone need {size / 2**30:.3g} GiB; raise it"
        )

    def _check_files(self) -> None:
        """Do nothing: a shard's size and checksum are compared when it arrives."""

    def _open_held_out(self) -> TokenSource:
        assert self._folder is not None
        # Separate fetches, so that requests here do not replace those of training.
        fetches = FetchAhead(self._fetches.cache, self._fetches.url, self._fetches.timeout_seconds)
        return RemoteTokenSource._of(self._folder, fetches, self.seed, "validation", self._config)

    def shard(self, number: int) -> TokenShard:
        """Return an open shard, fetched if necessary; not evicted while it is in use."""
        with self._lock:
            found = self._alive.get(number)
        if found is not None:
            return found
        info = self._infos[number]
        for attempt in range(1, _TRIES + 1):
            pin = self._fetches.wait_for(info, f"shard {number} of {self.name}")
            # A shard that was evicted and fetched again has a new inode, and is verified again.
            key = (number, os.fstat(pin).st_ino)
            try:
                shard = TokenShard.open(
                    self._fetches.cache.file(info.sha256),
                    info,
                    "size" if key in self._checked else self._verify,
                    self.tokenizer.fingerprint,
                    self.tokenizer.vocab_size,
                )
                break
            except DataError as error:
                # It was intact on arrival: this disk has changed it since, or has truncated it.
                self._fetches.cache.drop(info.sha256, pin)
                if attempt == _TRIES:
                    raise
                log.warning("%s; downloading it again", error)
            except BaseException:
                os.close(pin)
                raise
        assert shard.mapping is not None
        weakref.finalize(shard.mapping, os.close, pin)
        # The lengths are stored as soon as a shard has been read for any purpose.
        if self._outlines.get(number) is None:
            self._outlines.put(number, shard)
        # Two threads may have opened the shard at once: all use the first one.
        with self._lock:
            self._checked.add(key)
            return self._alive.setdefault(number, shard)

    def read_ahead(self, shards: Iterable[int]) -> None:
        """Fetch shards in this order, as many as the cache holds."""
        infos, room = [], self._room
        for number in shards:
            infos.append(self._infos[number])
            room -= self._infos[number].bytes
            if room < 0:
                break
        self._fetches.want(infos, self._room)

    def wait_for_repair(self) -> None:
        """From now on, wait for a shard that is missing or different, as for a slow store."""
        self._fetches.wait_for_repair()

    def stop_waiting(self) -> None:
        """End the waits for shards that are in progress."""
        self._fetches.interrupt()

    def open_block(self, epoch: int, shards: Sequence[int]) -> TokenBlock:
        """Divide the documents of some shards into samples."""
        # A block pins all its shards, and those of their random segments, at the same time.
        needed = {*shards, *(self._partner(epoch, shard) for shard in shards)}
        size = sum(self._infos[number].bytes for number in needed)
        if size > self._room:
            raise self._too_small(
                size + self._fetches.cache.limit - self._room, "the shards of one block"
            )
        return super().open_block(epoch, shards)

    def rows_by_shard(self, epoch: int) -> np.ndarray:
        """Return int64 [shards]: rows of each shard in this epoch."""
        with self._lock:
            known = epoch in self._counts
        if not known:
            self._gather_outlines(epoch)
        return super().rows_by_shard(epoch)

    def count_rows(self, epoch: int, shard: int) -> int:
        """Return the number of samples of the shard in this epoch."""
        partner = self._partner(epoch, shard)
        here = self._outline(shard)
        other = here if partner == shard else self._outline(partner)
        return count_shard(here, other, **self._scan_key(epoch, shard))

    def _outline(self, number: int) -> TokenShard:
        return self._outlines.get(number) or self.shard(number)

    def _gather_outlines(self, epoch: int) -> None:
        """Read every shard whose sentence lengths are missing, those needed first at the end."""
        # The shards read last are those that the epoch needs first, so they are still cached.
        order = reversed(shard_order(self.seed, epoch, self.shards))
        missing = [n for n in order if self._outlines.get(n) is None]
        if not missing:
            return
        size = sum(self._infos[n].bytes for n in missing)
        log.info(
            "%s: reading %d of %d shards (%.2f GB) once, to get their sentence lengths",
            self.name,
            len(missing),
            self.shards,
            size / 1e9,
        )
        began = said = time.monotonic()
        for done, number in enumerate(missing):
            if self._outlines.get(number) is None:  # another process may have been faster
                # Only a few shards ahead: more would evict those that are needed first.
                self.read_ahead(missing[done : done + READ_AHEAD])
                self.shard(number)
            if (now := time.monotonic()) - said > _SAY_SECONDS:
                said = now
                log.info("%s: %d of %d shards read", self.name, done + 1, len(missing))
        log.info("%s: sentence lengths read in %.1f s", self.name, time.monotonic() - began)

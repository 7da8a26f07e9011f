"""Groups of units: the amount of work that a process claims when several prepare one corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from bertds.errors import DataError
from data_prep.document import SourceFile, Unit
from data_prep.sources import file_state, file_units, is_read_by_one
from data_prep.sources.reading import file_facts
from data_prep.workers.team import Group

_SMALLEST_UNIT, _LARGEST_UNIT = 1 << 20, 32 << 20
_UNITS_WANTED = 64
LARGEST_GROUP = 256


def unit_groups(files: Sequence[SourceFile], task: Callable[[Unit], Any]) -> Iterator[Group]:
    """Divide the files into units, and group small ones; the same groups in all processes.

    A dump that only one process can read is one group, so that the others do not decompress it
    for nothing. Otherwise a group has about the bytes of one unit. Books and extracted articles are
    many small files, and claiming each would cost more than the work.
    """
    total = sum(file.bytes for file in files)
    size = min(max(total // _UNITS_WANTED, _SMALLEST_UNIT), _LARGEST_UNIT)
    number = 0
    gathered: list[Unit] = []

    def group(units: Callable[[], Iterable[Unit]]) -> Group:
        # Numbers are names, so every process must count the same groups in the same order.
        nonlocal number
        number += 1
        return Group(f"{number - 1:06d}", lambda: map(task, units()))

    for file in files:
        # Its units were cut by its size, and the manifest will list that.
        if file.reader != "hf" and file_facts(file.path).st_size != file.bytes:
            raise changed(str(file.path))
        if is_read_by_one(file):
            yield group(partial(file_units, file, size))
            continue
        for unit in file_units(file, size):
            gathered.append(unit)
            if sum(u.size for u in gathered) >= size or len(gathered) == LARGEST_GROUP:
                yield group(partial(iter, tuple(gathered)))
                gathered = []
    if gathered:
        yield group(partial(iter, gathered))


def changed(path: str) -> DataError:
    """Return the error for a source that is not what it was when the preparation began."""
    return DataError(
        f"{path}: changed while it was prepared; run the same command again when it is complete"
    )


def unit_name(unit: Unit) -> str:
    """Return a name for the unit's part that changes whenever the file changes."""
    identity = [*unit[:6], *unit.options, *file_state(unit)]
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=12).hexdigest()

"""Free memory in the middle of the heap goes back to the system, and only when there is much."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bertds.system.heap_trim import ROOM, Heap, _malloc_trim
from bertds.system.memory import resident_bytes
from tests.support.ranks import REPOSITORY

MIB = 2**20


def test_it_trims_when_the_process_has_grown() -> None:
    size, trimmed = [1000 * MIB], []

    def trim() -> None:
        trimmed.append(size[0])
        size[0] = 1100 * MIB

    heap = Heap(lambda: size[0], trim)
    seen = []
    for now in (1000, 1100, 2000, 2001, 1300, 2600, 2601):
        size[0] = now * MIB
        seen.append(heap.look())
    assert seen == [False, False, False, True, False, False, True]
    assert trimmed == [2001 * MIB, 2601 * MIB]


def test_growth_within_the_margin_and_an_unknown_size_are_not_trimmed() -> None:
    size = [10 * MIB]
    heap = Heap(lambda: size[0], lambda: None)
    heap.look()
    size[0] = 10 * MIB + ROOM
    assert not heap.look()
    size[0] += 1
    assert heap.look()
    unknown = Heap(lambda: 0, lambda: pytest.fail("trimmed"))
    assert not unknown.look() and not unknown.look()


# Blocks too small to be mapped one by one; every second one stays.
SCATTER = """
from bertds.system.heap_trim import Heap
from bertds.system.memory import resident_bytes
heap = Heap()
heap.look()
blocks = [bytearray(b"x") * 100_000 for _ in range(4000)]
kept = blocks[::2]
del blocks
before = resident_bytes()
assert heap.look()
print(before // 2**20, resident_bytes() // 2**20)
"""


@pytest.mark.skipif(_malloc_trim() is None, reason="not glibc")
def test_scattered_free_memory_is_returned() -> None:
    assert resident_bytes() > MIB
    done = subprocess.run(
        [sys.executable, "-c", SCATTER], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert before > 380 and after < before - 150

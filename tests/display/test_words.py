"""Numbers as words."""

from __future__ import annotations

from bertds.display.words import size


def test_sizes_have_a_suitable_unit() -> None:
    assert [size(n) for n in (0, 1.5 * 2**20, 2**30, 2.5 * 2**40)] == [
        "0.0 MiB",
        "1.5 MiB",
        "1.0 GiB",
        "2,560.0 GiB",
    ]

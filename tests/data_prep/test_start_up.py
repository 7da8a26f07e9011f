"""Start-up: the collector is back after loading, and patterns on first use are real ones."""

from __future__ import annotations

import gc
import re

import pytest

from bertds.data import scripts
from bertds.system.start_up import loading, pattern_on_first_use


def test_the_collector_is_back_after_loading_and_after_an_error() -> None:
    assert gc.isenabled()
    try:
        with loading():
            assert not gc.isenabled()
            with loading():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled()
        with pytest.raises(ValueError), loading():
            raise ValueError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_a_pattern_on_first_use_is_the_pattern() -> None:
    lazy, eager = pattern_on_first_use("a(b)", re.IGNORECASE), re.compile("a(b)", re.IGNORECASE)
    assert lazy.sub(r"\1", "AB cab") == eager.sub(r"\1", "AB cab") == "B cb"
    assert lazy.pattern == eager.pattern and lazy.search("x") is None


def test_every_letter_that_joins_without_a_space_is_foreseen() -> None:
    classes = scripts._WIDE + scripts._WIDE_MARKS + scripts._NARROW
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    found = re.findall(f"[{classes}]", characters)
    assert len(found) > 80_000
    low = [c for c in found if c < "\u3000"]
    assert all(map(scripts.may_join_without_space, low + found[len(low) :: 97]))
    assert not scripts.may_join_without_space("naïve “Ω” Łódź — Москва €")

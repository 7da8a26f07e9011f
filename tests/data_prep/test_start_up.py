"""Start-up: the collector is back after loading, and patterns on first use are real ones."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from bertds.data import scripts
from bertds.system.start_up import loading, pattern_on_first_use


class _Held:
    """An object that can be referred to weakly."""


def test_loading_does_not_keep_the_variables_of_its_callers() -> None:
    """A module that keeps a caught error in a cycle, as deepspeed does when it is imported."""

    def caller() -> weakref.ref[_Held]:
        held = _Held()
        with loading():
            try:
                raise ImportError
            except ImportError as error:
                kept = error  # a cycle: frame, error, traceback, frame
                assert kept.__traceback__ is not None
                frame = kept.__traceback__.tb_frame
                cycle: dict[str, object] = {"frame": frame}
                cycle["self"] = cycle
            del kept, frame, cycle
        return weakref.ref(held)

    try:
        gone = caller()
        gc.collect()
        assert gone() is None
    finally:
        gc.unfreeze()


def test_the_garbage_collector_is_enabled_again_after_loading_and_after_an_error() -> None:
    assert gc.isenabled()
    try:
        with loading():
            assert not gc.isenabled()
            with loading():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled()
        with loading("gc"):  # is loaded: nothing to do
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


def test_every_letter_that_joins_without_a_space_is_in_the_pattern() -> None:
    classes = scripts._WIDE + scripts._WIDE_MARKS + scripts._NARROW
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    found = re.findall(f"[{classes}]", characters)
    assert len(found) > 80_000
    low = [c for c in found if c < "\u3000"]
    assert all(map(scripts.may_join_without_space, low + found[len(low) :: 97]))
    assert not scripts.may_join_without_space("naïve “Ω” Łódź — Москва €")


def test_a_preparation_imports_only_the_libraries_that_it_needs(
    tmp_path: Path, vocab: Path
) -> None:
    # Each of these takes as long to import as a few books take to prepare.
    (tmp_path / "book.txt").write_text("A line of one. And of two.\n\n" * 40)
    given = ["--books", str(tmp_path / "book.txt"), "--vocab", str(vocab)]
    given += ["--out", str(tmp_path / "out"), "--validation-fraction", "0", "--workers", "1"]
    script = (
        "import sys; from data_prep.build_wiki_books import main; assert main(sys.argv[1:]) == 0; "
        "heavy = {'matplotlib', 'torch', 'transformers', 'datasets', 'pandas', 'pyarrow'};"
        "print('imported:', *sorted(heavy & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *given], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "imported:"
    assert (tmp_path / "out" / "report.html").is_file()

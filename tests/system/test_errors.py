"""What went wrong, for a message that names the file itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertds.errors import reason_of


def test_a_reason_is_one_line_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as missing:
        (tmp_path / "a").read_text()
    assert reason_of(missing.value) == "No such file or directory"
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError) as wrong:
        (tmp_path / "a").read_text(encoding="utf-8")
    assert reason_of(wrong.value) == "not UTF-8 text"
    assert reason_of(ValueError("two\nlines")) == "two lines"

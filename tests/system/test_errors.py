"""What went wrong, for a message that names the file itself."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pytest

from bertds.errors import DataError, one_line, reason_of, short_reason
from bertds.system.logs import log, log_to_file, start_logging
from bertds.system.run_command import guarded


def test_a_reason_is_one_line_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as missing:
        (tmp_path / "a").read_text()
    assert reason_of(missing.value) == "No such file or directory"
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError) as wrong:
        (tmp_path / "a").read_text(encoding="utf-8")
    assert reason_of(wrong.value) == "not UTF-8 text"
    assert reason_of(ValueError("two\nlines")) == "two lines"


def test_a_librarys_error_is_cut_and_named_if_it_says_nothing() -> None:
    assert short_reason(ValueError("two\nlines")) == "two lines"
    assert len(short_reason(ValueError("long " * 200))) == 300
    assert short_reason(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_characters_that_would_break_a_line_are_escaped() -> None:
    assert one_line("a\nb\r\tc\x1b[31m\x85\u2028d\udce9é中🎉\xa0.") == (
        "a\\nb\\r\\tc\\x1b[31m\\x85\\u2028d\\udce9é中🎉\xa0."
    )
    error = DataError("a\nb: missing")
    assert str(error) == str(DataError(f"{error}")) == r"a\nb: missing"


def test_a_file_name_with_a_line_break_leaves_an_error_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(_: list[str]) -> int:
        raise DataError("/data/two\nlines.txt: the file is empty")

    def refused(_: list[str]) -> int:
        raise PermissionError(13, "Permission denied", "/data/two\nlines.txt")

    def unexpected(_: list[str]) -> int:
        raise ValueError("\x1b[2J")

    assert [guarded(each, []) for each in (main, refused, unexpected)] == [2, 2, 1]
    assert capsys.readouterr().err.split("\n") == [
        r"bertds: error: /data/two\nlines.txt: the file is empty",
        r"bertds: error: /data/two\nlines.txt: cannot be accessed (Permission denied)",
        r"bertds: unexpected error: ValueError: \x1b[2J (run again with --debug for the traceback)",
        "",
    ]


def test_a_file_name_with_a_line_break_leaves_a_log_message_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging(is_main=True)
    handler = log_to_file(tmp_path / "log.txt")
    try:
        log.warning("%s: left out", "two\nlines\udce9")
        log.handle(log.makeRecord(log.name, 40, __file__, 0, "a\nb", (), _raised()))
    finally:
        handler.close()
        log.handlers.clear()
    assert r"two\nlines\udce9: left out" in capsys.readouterr().err
    first, second, *traceback = (tmp_path / "log.txt").read_text().splitlines()
    assert first.endswith(r"two\nlines\udce9: left out")
    assert second.endswith(r"a\nb")
    assert traceback[0].startswith("Traceback")
    assert traceback[-1] == "ValueError: bad"


def _raised() -> tuple[type[BaseException], BaseException, TracebackType | None]:
    try:
        raise ValueError("bad")
    except ValueError as error:
        return type(error), error, error.__traceback__

"""Mistakes on the command line: one line each, with what was meant."""

from __future__ import annotations

import pytest

from bertds.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--confg", "tiny"], "--confg tiny (did you mean --config?)"),
        (["train", "run.dir=x"], "run.dir=x (did you mean --set run.dir=x?)"),
        (["recipes", "copy", "x", "--ot=y"], "--ot=y (did you mean --to?)"),
        (["prep", "--txt", "x"], "--txt x (did you mean --text?)"),
        (["prep", "a\nb"], r"a\nb"),
        (["models", "--quux"], "--quux"),
    ],
)
def test_an_unknown_argument_is_named_with_what_was_meant(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: unrecognized arguments: {said}\n")


def test_a_line_break_does_not_break_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["checkpoint", "li\nst", "run"])
    assert "li\\nst" in capsys.readouterr().err.splitlines()[-1]

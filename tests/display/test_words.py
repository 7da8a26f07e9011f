"""Numbers as words."""

from __future__ import annotations

import shlex
from pathlib import Path

from bertds.display.words import shell_word, size


def test_sizes_have_a_suitable_unit() -> None:
    assert [size(n) for n in (0, 1.5 * 2**20, 2**30, 2.5 * 2**40)] == [
        "0.0 MiB",
        "1.5 MiB",
        "1.0 GiB",
        "2,560.0 GiB",
    ]


def test_a_path_in_a_printed_command_is_one_word_and_no_option() -> None:
    names = ["runs/a", "my run", "it's", "-run", "$HOME", "größe"]
    assert [shlex.split(shell_word(Path(name))) for name in names] == [
        ["runs/a"],
        ["my run"],
        ["it's"],
        ["./-run"],
        ["$HOME"],
        ["größe"],
    ]

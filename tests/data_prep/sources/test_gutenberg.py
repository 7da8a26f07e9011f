"""Project Gutenberg's small print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.read_sources import read

STORY = "It was the best of times in the little town by the river, and all said so.\n"
PRINT = "PLEASE READ THIS BEFORE YOU DISTRIBUTE OR USE THIS WORK, yes, all of it, at once.\n"
FRAMES = {
    "footer licence": "{story}\n*** START: FULL LICENSE ***\n\n{print}\n"
    "*END THE SMALL PRINT! X*END*\n",
    "footer small print": "{story}\n***START**THE SMALL PRINT!**X***\n\n{print}\n"
    "*END*THE SMALL PRINT!\n",
    "only the end of it": "{story}\nEnd of Project Gutenberg's X\n\n{print}\n"
    "*END*THE SMALL PRINT!\n",
    "header small print": "Project Gutenberg's X\n\n***START**THE SMALL PRINT!**X***\n\n{print}\n"
    "*END*THE SMALL PRINT! FOR X\n\n{story}",
    "header, only its end": "{print}\n*END*THE SMALL PRINT! FOR X\n\n{story}",
    "header notice": "This header should be the first thing seen when anyone opens it. Do not "
    "change it.\n\n{story}",
}


@pytest.mark.parametrize("frame", FRAMES)
def test_small_print_is_removed_wherever_it_is(tmp_path: Path, frame: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(FRAMES[frame].format(story=STORY * 3, print=PRINT))
    (document,) = read("books", path)
    assert document.text == (STORY * 3).replace("\n", " ").strip()


def test_markers_count_only_where_they_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    begin, end = (
        "*** START OF THE PROJECT GUTENBERG EBOOK {} ***",
        "*** END OF THE PROJECT GUTENBERG",
    )
    long = "\n".join(f"{STORY}Chapter {i} ended so.\n" for i in range(500))
    assert len(long) > 40_000
    # Two books in one file, each in its frame.
    two = [f"{begin.format(n)}\n\nBook {n}. {STORY}\n{end} EBOOK\n\n{PRINT}" for n in (1, 2)]
    path.write_text("\n".join(two))
    (document,) = read("books", path)
    assert document.text.count("best of times") == 2
    assert "DISTRIBUTE" not in document.text
    # A line in the midst of a long book that says where a part ends.
    path.write_text(f"{begin.format(1)}\n\n{STORY}\nEnd of Project Gutenberg's part 1\n\n{long}")
    (document,) = read("books", path)
    assert document.text.count("Chapter") == 500
    # A start marker after the story.
    path.write_text(f"{long}\n{begin.format(1)}\n\n{PRINT}")
    (document,) = read("books", path)
    assert document.text.count("Chapter") == 500
    assert "DISTRIBUTE" not in document.text


@pytest.mark.parametrize("indent", ["", "   "])
def test_the_last_end_marker_counts_in_a_short_book_too(tmp_path: Path, indent: str) -> None:
    path = tmp_path / "a.txt"
    begin = f"{indent}*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n"
    end = f"{indent}*** END OF THE PROJECT GUTENBERG EBOOK X ***\n\n{PRINT}"
    story = "\n".join(f"{STORY}Chapter {i} ended so.\n" for i in range(20))
    quoted = "End of Project Gutenberg's first part, as the printer had it.\n\n"
    for before_end in ("", f"{indent}End of the Project Gutenberg EBook of X, by Y\n\n\n"):
        path.write_text(f"{begin}{story}\n{quoted}{story}\n{before_end}{end}")
        (document,) = read("books", path)
        assert document.text.count("Chapter") == 40
        assert "DISTRIBUTE" not in document.text and "EBook" not in document.text
    # A licence that ends with the marker again.
    path.write_text(
        f"{begin}{story}{end}\nUpdated editions will replace the previous one.\n{PRINT * 20}\n{end}"
    )
    (document,) = read("books", path)
    assert document.text.count("Chapter") == 20 and "DISTRIBUTE" not in document.text
    path.write_text(f"{story}\nEnde dieses Projekt Gutenberg Etextes X\n\n{PRINT}")
    (document,) = read("books", path)
    assert document.text.count("Chapter") == 20 and "DISTRIBUTE" not in document.text

"""What the pipeline refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertds.commands.pipeline import main
from bertds.errors import DataError
from data_prep import build_wiki_books


def test_another_corpus_in_the_same_folder_is_refused_in_the_pipelines_words(
    tmp_path: Path,
) -> None:
    books = tmp_path / "books"
    books.mkdir()
    (books / "one.txt").write_text("A line of one. And of two.\n\n" * 40)
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nline\n")
    work = tmp_path / "work"
    command = ["--books", str(books), "--vocab", str(vocab)]
    prepare = [*command, "--out", str(work / "data"), "--validation-fraction", "0"]
    assert build_wiki_books.main(prepare) == 0
    with pytest.raises(DataError, match=r"0\.05 now.*choose another --work DIR") as refusal:
        main(["--work", str(work), *command])
    assert "--overwrite" not in str(refusal.value)

"""Inputs and output folders in odd places: nothing of the user's is lost or silently left out."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.vocabulary import TOKENIZER_FILES
from bertds.errors import ConfigError, DataError, UserError
from data_prep import prepare
from data_prep.build_wiki_books import main
from data_prep.document import Document, Unit
from data_prep.request import PrepRequest
from data_prep.resolve import Resolved, resolve
from data_prep.sources import READERS, find_files

Command = Callable[..., list[str]]


@pytest.fixture
def command(vocab: Path) -> Command:
    def given(out: Path, *more: object) -> list[str]:
        tokens = [] if "--vocab" in more else ["--vocab", str(vocab)]
        return ["--out", str(out), *tokens, "--workers", "1", *map(str, more)]

    return given


@pytest.fixture
def text(made: SimpleNamespace) -> str:
    rng = random.Random(1)
    return "\n\n".join(made.sentence(rng) for _ in range(20))


@pytest.mark.parametrize("place", ["", "train", "tokenizer/deep", "raw"])
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--dry-run"]])
def test_an_input_in_the_output_folder_is_refused_and_kept(
    tmp_path: Path, command: Command, text: str, made: SimpleNamespace, place: str, more: list[str]
) -> None:
    out = tmp_path / "out"
    (out / place).mkdir(parents=True)
    (out / place / "a.txt").write_text(text)
    before = made.tree(tmp_path)
    for given in (out / place, out / place / "a.txt"):
        with pytest.raises(ConfigError, match=r"out: (contains the input .*|is also an input); ch"):
            main(command(out, "--text", given, *more))
    (tmp_path / "link.txt").symlink_to(out / place / "a.txt")
    with pytest.raises(ConfigError, match=r"out: contains the input .*; choose another folder"):
        main(command(out, "--text", tmp_path / "link.txt", *more))
    (tmp_path / "link.txt").unlink()
    assert made.tree(tmp_path) == before


def test_an_input_in_the_work_folder_of_a_url_is_refused(
    tmp_path: Path, command: Command, text: str
) -> None:
    (tmp_path / "a.txt").write_text(text)
    given = command(Path("out"), "--text", tmp_path / "a.txt", "--work-dir", tmp_path)
    given[given.index("--out") + 1] = f"file://{tmp_path}/out"
    with pytest.raises(ConfigError, match=r"contains the input .*; choose .* for --work-dir"):
        main(given)


def test_the_vocabulary_in_the_output_folder_is_not_deleted(
    tmp_path: Path, command: Command, text: str, made: SimpleNamespace
) -> None:
    """Its only copy may be there, if it was trained."""
    (tmp_path / "a.txt").write_text(text)
    out = tmp_path / "out"
    assert main(command(out, "--text", tmp_path / "a.txt")) == 0
    before = made.tree(out)
    for option in (["--vocab", out / "tokenizer"], ["--decontaminate", out / "report.html"]):
        with pytest.raises(ConfigError, match="out: contains the input"):
            main(command(out, "--text", tmp_path / "a.txt", "--overwrite", *option))
    assert made.tree(out) == before


def test_overwrite_removes_only_what_preparation_writes(
    tmp_path: Path, command: Command, text: str, made: SimpleNamespace
) -> None:
    (tmp_path / "a.txt").write_text(text)
    out = tmp_path / "out"
    own = ["train/photos/cat.jpg", "validation/labels.csv", "tokenizer/notes.md", "dropped/x.txt"]
    own += ["train/shard_00000.h5.bak", "hdf5_lower_case_0/notes.md"]
    for name in own:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    before = made.tree(out)
    given = command(out, "--text", tmp_path / "a.txt", "--instances", "64:10", "--keep-dropped")
    with pytest.raises(DataError, match=r"contains .* but no manifest\.json"):
        main(given)
    assert main([*given, "--overwrite"]) == 0
    first = made.tree(out)
    assert before.items() <= first.items()
    # A second one leaves nothing of the first.
    other = command(out, "--text", tmp_path / "a.txt", "--validation-fraction", "0")
    assert main([*other, "--overwrite"]) == 0
    assert {name for name in made.tree(out) if name not in own} == {
        "manifest.json",
        "report.html",
        "train/shard_00000.h5",
        *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
    }
    assert not list(out.glob("hdf5_lower_case_1_*"))


def test_the_output_folder_in_the_input_folder_is_not_read(
    tmp_path: Path, command: Command, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(text)
    out = tmp_path / "deep" / "out"
    for expected in ("prepared", "already prepared"):
        assert main(command(out, "--text", tmp_path)) == 0
        assert expected in capsys.readouterr().err
    (source,) = Manifest.load(out).sources
    assert [file["name"] for file in source["files"]] == ["a.txt"]


def test_a_file_that_is_given_twice_is_read_once(
    tmp_path: Path, command: Command, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(text)
    (tmp_path / "link.txt").symlink_to(texts / "a.txt")
    again = [texts / "a.txt", tmp_path / "link.txt", texts / ".." / "texts"]
    assert main(command(tmp_path / "out", "--text", texts, *again)) == 0
    assert "3 files are given more than once for --text, and read once" in capsys.readouterr().err
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.documents["read"] == 20
    assert [file["name"] for file in manifest.sources[0]["files"]] == ["a.txt"]
    # As another kind of source, its documents are others, or duplicates.
    assert main(command(tmp_path / "two", "--text", texts, "--books", texts)) == 0


@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
@pytest.mark.parametrize("option", ["--text", "--books"])
def test_a_source_that_changes_meanwhile_is_refused(
    tmp_path: Path,
    command: Command,
    text: str,
    made: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    when: str,
) -> None:
    """A download is still in progress, or the file is cut: a part of it would be missing."""
    path = tmp_path / "a.txt"
    path.write_text(text)

    def resolved_and_cut(request: PrepRequest) -> Resolved:
        found = resolve(request)
        path.write_text(text[:300])
        return found

    def read_and_cut(unit: Unit) -> Iterator[Document]:
        yield from real(unit)
        path.write_text(text[:300])

    given = command(tmp_path / "out", option, path, "--validation-fraction", "0")
    with monkeypatch.context() as patch:
        if when == "before it is read":
            patch.setattr(prepare, "resolve", resolved_and_cut)
        else:
            reader = {"--text": "text", "--books": "book"}[option]
            real = READERS[reader]
            patch.setitem(READERS, reader, read_and_cut)
        with pytest.raises(DataError, match=r"a\.txt: changed while it was prepared; run the same"):
            main(given)
    path.write_text(made.article(random.Random(2)))
    assert main(given) == 0


def test_what_is_not_read_in_a_folder_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (".git", "a"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.txt").write_text("A text.")
    (tmp_path / ".hidden.txt").write_text("A text.")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    assert [file.name for file in find_files("books", [tmp_path], ())] == ["a/1.txt"]
    assert "ignored by --books: 2 broken links, 1 empty, 1 special file" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"pipe\.txt: is neither a file nor a folder \(for --book"):
        find_files("books", [tmp_path / "pipe.txt"], ())


def test_names_that_are_not_unicode_are_escaped(
    tmp_path: Path, command: Command, made: SimpleNamespace
) -> None:
    books = tmp_path / "books"
    books.mkdir()
    names = [b"caf\xe9.txt", b"two\nlines.txt", b"-a b'\".txt", b"%41[x]*.txt"]
    for number, name in enumerate(names):
        book = made.article(random.Random(number))
        Path(os.fsdecode(bytes(books) + b"/" + name)).write_text(book)
    for out in ("one", "two"):
        workers = ["--workers", "2", "--keep-dropped"] if out == "two" else []
        assert main(command(tmp_path / out, "--books", books, *workers)) == 0
    (source,) = Manifest.load(tmp_path / "one").sources
    assert "caf\\udce9.txt" in [file["name"] for file in source["files"]]
    assert made.tree(tmp_path / "one" / "train") == made.tree(tmp_path / "two" / "train")


def test_a_name_with_a_line_break_leaves_messages_in_one_line(
    tmp_path: Path, command: Command, made: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "two\nlines"
    folder.mkdir()
    (folder / "a.txt").write_text(made.article(random.Random(1)))
    (folder / "b.c\nd").write_text("Another type.")
    assert main(command(folder / "out", "--books", folder, "--validation-fraction", 0)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(r"two\nlines: ignored by --books: 1 .c\nd")
    assert rf"prepared {tmp_path}/two\nlines/out" in lines
    with pytest.raises(DataError) as refused:
        main(command(tmp_path / "out", "--text", folder / "none.txt"))
    assert str(refused.value).splitlines() == [
        rf"{tmp_path}/two\nlines/none.txt: no such file or folder (for --text)"
    ]


def test_a_folder_that_may_not_be_read_or_written_is_a_mistake_of_the_user(
    tmp_path: Path, command: Command, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=r"a\.txt.b\.txt: cannot be read \(Not a directory\)"):
        main(command(tmp_path / "out", "--text", tmp_path / "a.txt" / "b.txt"))
    # As root, who may write everywhere, the tests can only pretend.
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(DataError, match="out: cannot be written; choose another folder"):
            main(command(tmp_path / "out", "--text", tmp_path / "a.txt"))

    def refused(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(DataError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        find_files("text", [tmp_path / "a.txt"], ("line",))


@pytest.mark.parametrize("option", ["--text", "--books", "--wiki", "--decontaminate", "--hf"])
def test_an_empty_name_is_not_the_current_folder(
    tmp_path: Path, command: Command, text: str, option: str
) -> None:
    """From a variable of a shell that is not set."""
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=f"{option}: the value is empty"):
        main(command(tmp_path / "out", "--text", tmp_path / "a.txt", option, ""))

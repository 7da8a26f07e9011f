"""A preparation that was refused because of its input may be replaced; an interrupted one not."""

from __future__ import annotations

import bz2
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.errors import BertdsError, DataError
from data_prep.build_wiki_books import main
from data_prep.earlier_run import OtherSettings
from data_prep.stages import markers, shuffle, tokenise
from tests.support.fault_injection import Killed

FEW = "only 3 distinct documents, but at least 4 are needed"


@pytest.fixture(scope="module")
def documents(made: SimpleNamespace) -> list[str]:
    rng = random.Random(3)
    return [made.article(rng).replace("\n\n", "\n") for _ in range(12)]


@pytest.fixture
def command(tmp_path: Path, vocab: Path) -> Callable[..., list[str]]:
    """The command for a file, with its result in ``out`` unless another name is given."""

    def given(*more: str, out: str = "out") -> list[str]:
        files = ["--text", str(tmp_path / "texts"), "--out", str(tmp_path / out)]
        tokens = [] if "--train-vocab" in more else ["--vocab", str(vocab)]
        return [*files, *tokens, "--workers", "1", *more]

    (tmp_path / "texts").mkdir()
    return given


def write(path: Path, documents: list[str]) -> None:
    path.write_text("\n\n".join(documents))


@pytest.mark.parametrize("tasks", ["", "--task-count 2"])
def test_after_documents_are_added_the_same_command_works(
    tmp_path: Path,
    documents: list[str],
    command: Callable[..., list[str]],
    made: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    tasks: str,
) -> None:
    write(tmp_path / "texts" / "a.txt", documents[:3])
    for _ in range(2):  # refused in the same way every time
        with pytest.raises(DataError, match=FEW):
            main(command(*tasks.split()))
    write(tmp_path / "texts" / "b.txt", documents[3:])
    assert main(command(*tasks.split())) == 0
    assert (
        "replacing a preparation that was refused (the source files have changed: b.txt is new)"
        in (capsys.readouterr().err)
    )
    assert main(command(out="fresh")) == 0
    assert made.tree(tmp_path / "out") == made.tree(tmp_path / "fresh")
    assert not (tmp_path / "out" / ".work").exists()


@pytest.mark.parametrize(
    ("texts", "refused", "message", "works"),
    [
        (3, "", FEW, "--validation-fraction 0"),
        # Refused in the last stage, when the shards are already written.
        (
            1,
            "--validation-fraction 0 --instances 64:10",
            "single document",
            "--validation-fraction 0 --instances 64:10 --pairs none",
        ),
        (
            13,
            "--train-vocab 300",
            r"--train-vocab 300: the text has 6\d\d distinct",
            "--train-vocab 700",
        ),
    ],
)
def test_with_another_option_the_command_works(
    tmp_path: Path,
    documents: list[str],
    command: Callable[..., list[str]],
    made: SimpleNamespace,
    texts: int,
    refused: str,
    message: str,
    works: str,
) -> None:
    ideographs = "".join(map(chr, range(0x4E00, 0x4E00 + 600)))
    write(tmp_path / "texts" / "a.txt", [*documents, ideographs][:texts])
    with pytest.raises(DataError, match=message):
        main(command(*refused.split()))
    assert main(command(*works.split())) == 0
    assert main(command(*works.split(), out="fresh")) == 0
    assert made.tree(tmp_path / "out") == made.tree(tmp_path / "fresh")


def test_the_work_on_unchanged_files_is_kept(
    tmp_path: Path,
    documents: list[str],
    command: Callable[..., list[str]],
    made: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A damaged file among good ones is replaced."""
    texts = tmp_path / "texts"
    for number in range(3):
        write(texts / f"{number}.txt", documents[3 * number : 3 * number + 3])
    # The first of two streams is intact, so the damage is found only when the file is read.
    packed = b"".join(bz2.compress(f"{document}\n\n".encode()) for document in documents[9:])
    (texts / "9.txt.bz2").write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"9\.txt\.bz2: truncated"):
        main(command())
    (texts / "9.txt.bz2").write_bytes(packed)
    written = []

    def remember(marker: Path, *rest: object) -> object:
        written.append(marker)
        return markers.write_marker(marker, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tokenise, "write_marker", remember)
    assert main(command()) == 0
    assert len(written) == 1
    assert main(command(out="fresh")) == 0
    assert made.tree(tmp_path / "out") == made.tree(tmp_path / "fresh")


@pytest.mark.parametrize("error", [Killed(), KeyboardInterrupt(), BertdsError("the disk is full")])
def test_an_interrupted_preparation_is_not_replaced(
    tmp_path: Path,
    documents: list[str],
    command: Callable[..., list[str]],
    made: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    write(tmp_path / "texts" / "a.txt", documents)

    def stop(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(shuffle, "write_marker", stop)
        with pytest.raises(type(error)):
            main(command())
    advice = "out: interrupted; run the same command again to resume"
    assert (advice in capsys.readouterr().err) == isinstance(error, KeyboardInterrupt)
    before = made.tree(tmp_path / "out")
    with pytest.raises(OtherSettings, match="seed: 12345 before, 7 now"):
        main(command("--seed", "7"))
    shutil.copyfile(tmp_path / "texts" / "a.txt", tmp_path / "texts" / "b.txt")
    with pytest.raises(OtherSettings, match=r"the source files have changed: b\.txt is new"):
        main(command())
    assert made.tree(tmp_path / "out") == before
    (tmp_path / "texts" / "b.txt").unlink()
    assert main(command()) == 0


def test_a_finished_preparation_is_not_replaced_after_a_refused_repair(
    tmp_path: Path, documents: list[str], command: Callable[..., list[str]]
) -> None:
    """A shard is lost and cannot be made again, because the source is damaged by now."""
    texts = tmp_path / "texts"
    write(texts / "a.txt", documents)
    assert main(command()) == 0
    (tmp_path / "out" / "train" / "shard_00000.h5").unlink()
    size = (texts / "a.txt").stat().st_size
    (texts / "a.txt").write_bytes(b"\xff" * size)
    with pytest.raises(DataError, match="no documents are left"):
        main(command())
    with pytest.raises(OtherSettings, match="seed: 12345 before, 7 now"):
        main(command("--seed", "7"))
    assert (tmp_path / "out" / "manifest.json").exists()
    write(texts / "a.txt", documents)
    assert main(command()) == 0
    assert not (tmp_path / "out" / ".work").exists()

"""After a source has changed, no shard or row file of the former text is left in the output."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.data.formats.manifest import Manifest
from data_prep import run_stages
from data_prep.build_wiki_books import main
from tests.support.fault_injection import Killed

Command = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path, vocab: Path) -> Command:
    """Writes several shards, and several files of rows."""

    def given(out: object, *more: str) -> list[str]:
        files = ["--text", str(tmp_path / "t.txt"), "--out", str(out), "--vocab", str(vocab)]
        settings = "--workers 1 --shard-tokens 1000 --instances 64:10 --dupe-factor 2"
        return [*files, *settings.split(), *more]

    return given


@pytest.fixture
def change(tmp_path: Path, made: SimpleNamespace) -> Callable[[], None]:
    """Replaces the text by one of the same size in which most documents are equal."""
    rng = random.Random(5)
    documents = [made.article(rng, 1) for _ in range(120)]
    text = "\n\n".join(documents)
    (tmp_path / "t.txt").write_text(text)

    def to_fewer() -> None:
        few = "\n\n".join(documents[:8])
        lines = f"\n\n{documents[0]}" * len(documents)
        (tmp_path / "t.txt").write_text((few + lines)[: len(text)].ljust(len(text)))

    return to_fewer


def shards(out: Path) -> int:
    return len(list((out / "train").iterdir()))


@pytest.mark.parametrize("tasks", ["", "--task-count 2"])
def test_a_repair_after_a_source_has_changed_leaves_no_file_of_the_former_text(
    tmp_path: Path,
    command: Command,
    change: Callable[[], None],
    made: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    tasks: str,
) -> None:
    out = tmp_path / "out"
    assert main(command(out, *tasks.split())) == 0
    before = shards(out)
    (out / "train" / "shard_00000.h5").unlink()
    (out / "train" / "shard_00099.h5").mkdir()  # of the user
    change()
    assert main(command(out, *tasks.split())) == 0
    (out / "train" / "shard_00099.h5").rmdir()
    said = capsys.readouterr().err
    assert "out: removed " in said and "files of an earlier preparation: hdf5_lower_case" in said
    assert main(command(tmp_path / "fresh")) == 0
    assert shards(tmp_path / "fresh") < before - 1
    assert made.tree(out) == made.tree(tmp_path / "fresh")


@pytest.mark.parametrize("refused", [False, True])
def test_an_interrupted_preparation_of_a_source_that_changes_leaves_none(
    tmp_path: Path,
    command: Command,
    change: Callable[[], None],
    made: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    refused: bool,
) -> None:
    """Also if the preparation is refused in the meantime."""
    out = tmp_path / "out"

    def stop(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_stages, "offer_report", stop)
        with pytest.raises(Killed):
            main(command(out))
    before = shards(out)
    if refused:
        text = (tmp_path / "t.txt").read_bytes()
        (tmp_path / "t.txt").write_bytes(b"\xff" * len(text))
        with pytest.raises(Exception, match="no documents are left"):
            main(command(out))
    change()
    assert main(command(out)) == 0
    assert main(command(tmp_path / "fresh")) == 0
    assert shards(tmp_path / "fresh") < before - 1
    assert made.tree(out) == made.tree(tmp_path / "fresh")


def test_a_store_keeps_no_file_of_an_earlier_preparation(
    tmp_path: Path, command: Command, change: Callable[[], None], made: SimpleNamespace
) -> None:
    store = tmp_path / "store"
    work = ["--work-dir", str(tmp_path / "work"), "--overwrite"]
    assert main(command(f"file://{store}", "--keep-dropped", *work)) == 0
    (store / "train" / "notes.txt").write_text("of the user")
    (store / "shard_00009.h5").write_text("of the user")
    change()
    assert main(command(f"file://{store}", "--seed", "1", *work)) == 0
    assert main(command(tmp_path / "fresh", "--seed", "1")) == 0
    left = made.tree(store)
    assert left.pop("train/notes.txt") and left.pop("shard_00009.h5")
    assert left == made.tree(tmp_path / "fresh")


def test_a_finished_folder_is_kept_and_what_does_not_fit_is_reported(
    tmp_path: Path,
    command: Command,
    change: Callable[[], None],
    made: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert main(command(out)) == 0
    capsys.readouterr()
    assert main(command(out)) == 0
    assert "warning" not in capsys.readouterr().err
    (shard,) = {f.file for f in Manifest.load(out).splits["train"].shards[:1]}
    shutil.copyfile(out / shard, out / "train" / "shard_00077.h5")
    (out / "train" / "notes.txt").write_text("of the user")
    before = made.tree(out)
    change()
    later = (out / "manifest.json").stat().st_mtime + 10
    os.utime(tmp_path / "t.txt", (later, later))
    assert main(command(out)) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {out}: train/shard_00077.h5: not listed in manifest.json, probably left from an "
        "earlier preparation; remove it",
        f"warning: {tmp_path}/t.txt: modified after {out} was prepared; if the text has changed, "
        "prepare it again with --overwrite",
        f"{out}: already prepared with these settings; all files are intact",
    ]
    assert made.tree(out) == before

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from bertds.cli import main as bertds
from bertds.data.vocabulary_file import read_vocabulary
from bertds.errors import DataError
from data_prep.build_wiki_books import main
from tests.support.prep_options import wiki_options


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, wiki_dump: Path, vocab: Path) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    settings = "--instances 64:10 --dupe-factor 1 --compression none"
    assert main(wiki_options(out, wiki_dump, vocab, settings=settings)) == 0
    return out


def rows_shown(text: str) -> list[tuple[int, int, int, int, str]]:
    """(number, tokens, masks, label, words with the hidden ones put back) of each row."""
    found = []
    for head, *segments in (part.split("\n") for part in re.split(r"\n(?=row )", text.strip())):
        match = re.fullmatch(
            r"row (\d+)  (\d+) tokens, (\d+) masked, next_sentence_label ([01]): (.*)", head
        )
        assert match, head
        assert match[5] == ("the next segment", "a random segment")[int(match[4])]
        assert [s[:5] for s in segments] == ["  A  ", "  B  "]
        words = " ".join(s[5:] for s in segments)
        number, tokens, masks, label = map(int, match.groups()[:4])
        assert len(re.findall(r"\{.*?\}", words)) == masks
        found.append((number, tokens, masks, label, re.sub(r"\S+\{(.+?)\}", r"\1", words)))
    return found


def test_rows_of_nvidia_files_as_h5py_reads_them(
    prepared: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = next(prepared.glob("hdf5_*"))
    assert bertds(["prep", "show", str(folder), "--split", "train", "-n", "4", "--first", "2"]) == 0
    shown = rows_shown(capsys.readouterr().out)
    assert [number for number, *_ in shown] == [2, 3, 4, 5]
    tokens = read_vocabulary(vocab)
    with h5py.File(next(folder.glob("*/*_training_0.hdf5"))) as file:
        for number, length, masks, label, words in shown:
            ids = file["input_ids"][number]
            positions = file["masked_lm_positions"][number]
            count = int(np.count_nonzero(positions))
            ids[positions[:count]] = file["masked_lm_ids"][number][:count]
            real = int(file["input_mask"][number].sum())
            assert (length, masks, label) == (real, count, file["next_sentence_labels"][number])
            plain = " ".join(tokens[i] for i in ids[:real])
            assert (
                words.replace(" ", "")
                == plain.replace(" ##", "").replace("##", "").replace(" ", "")
                or "##" in words
            )


def test_rows_of_token_shards_are_text_of_that_split(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for split in ("validation", "train"):
        assert main(["show", str(prepared), "--split", split, "-n", "3"]) == 0
        told.append(rows_shown(capsys.readouterr().out))
        assert [number for number, *_ in told[-1]] == [0, 1, 2]
    assert told[0] != told[1]
    assert main(["show", str(prepared), "--first", "1", "-n", "2", "--sequence-length", "64"]) == 0
    assert rows_shown(capsys.readouterr().out) == told[0][1:]  # 64 is what was requested then
    assert main(["show", str(prepared), "--sequence-length", "32"]) == 0
    assert all(tokens <= 32 for _, tokens, *_ in rows_shown(capsys.readouterr().out))
    # The split that there is, unless one is asked for.
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["splits"]["validation"] = {"documents": 0, "sentences": 0, "tokens": 0, "shards": []}
    without = tmp_path / "without"
    shutil.copytree(prepared, without)
    (without / "manifest.json").write_text(json.dumps(manifest))
    assert main(["show", str(without), "-n", "3"]) == 0
    assert rows_shown(capsys.readouterr().out) == told[1]
    with pytest.raises(DataError, match=r"the validation split is empty"):
        main(["show", str(without), "--split", "validation"])
    assert main(["show", str(prepared), "--first", "100000"]) == 0
    assert "no more rows" in capsys.readouterr().out


def test_a_terminal_gets_colours(prepared: Path) -> None:
    from rich.console import Console

    from bertds.data.formats.manifest import Manifest
    from data_prep.report.show_rows import describe, shard_rows

    words = read_vocabulary(prepared / "tokenizer" / "vocab.txt")
    row = next(shard_rows(prepared, Manifest.load(prepared), "train", 0, 1, 64))
    console = Console(force_terminal=True, color_system="standard", width=200, highlight=False)
    with console.capture() as capture:
        console.print(describe("row 0", row, words, "nsp"))
    masked = words[row.ids[min(row.masked)]]
    assert f"\x1b[1;31m{masked}\x1b[0m\x1b[32m{{" in capture.get()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/does/not/exist"], "/does/not/exist: no such file or folder"),
        (["-n", "0"], "-n 0"),
        (["--sequence-length", "4"], "sequence_length"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    prepared: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments if arguments[0][0] == "/" else [str(prepared), *arguments]
    assert bertds(["prep", "show", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_rows_apart_from_their_folder_need_a_vocabulary(
    prepared: Path, vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "rows.hdf5")
    shutil.copy(next(prepared.glob("hdf5_*/*/*_test_0.hdf5")), file)
    assert bertds(["prep", "show", file]) == 2
    assert "give --vocab" in capsys.readouterr().err
    assert bertds(["prep", "show", file, "--vocab", str(vocab), "-n", "1"]) == 0
    assert len(rows_shown(capsys.readouterr().out)) == 1
    small = tmp_path / "small.txt"
    small.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    assert bertds(["prep", "show", file, "--vocab", str(small)]) == 2
    assert "but the vocabulary has 6" in capsys.readouterr().err

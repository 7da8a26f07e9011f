from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.vocabulary import read_vocabulary
from bertds.errors import ConfigError
from data_prep.build_wiki_books import main
from data_prep.sources import READERS, file_units, find_files
from data_prep.stages import tokenise
from data_prep.tokens import nanotoken_encoder
from tests.support.prep_options import wiki_options

pytest.importorskip("nanotoken")


arguments = partial(wiki_options, settings="--shard-tokens 3000")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory, wiki_dump: Path, vocab: Path) -> Path:
    out = tmp_path_factory.mktemp("usual") / "out"
    assert main(arguments(out, wiki_dump, vocab)) == 0
    return out


def shards(tree: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in tree.items() if name.endswith(".h5")}


@pytest.mark.parametrize("casing", ["uncased", "cased"])
def test_real_text_has_the_ids_of_tokenizers(shared_data: Path, casing: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = shared_data / "vocab" / f"bert-base-{casing}-vocab.txt"
    theirs = tokenizers.BertWordPieceTokenizer(str(path), lowercase=casing == "uncased")
    files = find_files("wiki", [str(shared_data / "wikipedia" / "extracted-mlperf")], ())[:1]
    lines = [
        line
        for unit in file_units(files[0], 1 << 22)
        for document in READERS[unit.reader](unit)
        for line in document.text.split("\n")
    ][:2000]
    encoder = nanotoken_encoder.NanotokenEncoder(read_vocabulary(path), casing == "uncased")
    ids, lengths = encoder.encode(lines)
    expected = [e.ids for e in theirs.encode_batch(lines, add_special_tokens=False)]
    assert lengths.tolist() == list(map(len, expected))
    assert ids.tolist() == [i for own in expected for i in own]


def test_the_shards_are_the_same_and_the_manifest_says_how_they_were_made(
    usual: Path,
    wiki_dump: Path,
    vocab: Path,
    tmp_path: Path,
    made: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert main(arguments(out, wiki_dump, vocab, "--tokeniser", "nanotoken")) == 0
    assert shards(made.tree(out)) == shards(made.tree(usual))
    assert Manifest.load(out).settings["tokeniser"] == "nanotoken"
    assert "tokeniser" not in Manifest.load(usual).settings
    assert "disagree" not in capsys.readouterr().err


def test_at_the_first_difference_it_is_dropped_with_a_warning(
    usual: Path,
    wiki_dump: Path,
    vocab: Path,
    tmp_path: Path,
    made: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    class Wrong(nanotoken_encoder.NanotokenEncoder):
        def __init__(self, tokens: list[str], lower_case: bool) -> None:
            super().__init__(tokens, lower_case)
            right = self._fast

            class Fast:
                def encode_batch(self, texts: list[str], **more: bool) -> tuple:
                    ids, offsets = right.encode_batch(texts, **more)
                    calls.append(len(texts))
                    return np.where(ids == ids.max(), ids - 1, ids), offsets

            self._fast = Fast()

    monkeypatch.setattr(tokenise, "NanotokenEncoder", Wrong)
    monkeypatch.setattr(tokenise, "distrusted", set())
    tokenise.encoder.cache_clear()
    out = tmp_path / "out"
    try:
        assert main(arguments(out, wiki_dump, vocab, "--tokeniser", "nanotoken")) == 0
    finally:
        tokenise.encoder.cache_clear()
    assert shards(made.tree(out)) == shards(made.tree(usual))
    assert capsys.readouterr().err.count("nanotoken and tokenizers disagree on") == 1
    assert len(calls) == 1


def test_without_the_package_the_option_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nanotoken", None)
    with pytest.raises(ConfigError, match=r"pip install 'bertds\[nanotoken\]'"):
        nanotoken_encoder.check_installed()
